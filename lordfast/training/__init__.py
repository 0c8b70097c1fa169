"""Runs on disk, the training loop, checkpoints, and LoRA fine-tuning: Stage 2's engine and every surrogate's.

May be imported by attacks, purify, defense and everything above; imports diffusion, data, adapter and ops.
"""
