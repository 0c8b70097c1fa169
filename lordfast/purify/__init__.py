"""Purifiers: what people try first to wash an attack out of images; image in, image out, one file per family.

May be imported by defense and everything above; imports training, diffusion, data and ops, and not attacks.
"""
