"""How much memory an attack, Stage 1 and Stage 2 take: counted on tensors without data, before anything is loaded.

Imports what training may: diffusion, profiling, adapter. Nothing else in training needs it but `placement`.
"""
