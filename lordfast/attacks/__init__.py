"""Attacks: budgets, the shared perturbation engine, one file per attack family; image in, image out.

May be imported by defense and everything above; imports training, diffusion, data and ops.
"""
