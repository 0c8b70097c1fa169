"""Makes the embedded model from nothing: ``python -m lordfast.demo.pretrain``.

Draws the images, trains the VAE, the text encoder with the UNet, and the attribute classifier, and packs them.
May be imported by nothing but its own command; imports everything below ``demo``.
"""
