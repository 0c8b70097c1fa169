"""What a latent diffusion model is to lordfast: load its parts once, encode, noise, predict, loss, sample, cache.

The only package that knows pipeline classes: a new model family is one more file here, with a subclass of
LatentDiffusion. May be imported by training and everything above it; imports the adapter, to save LoRAs, and the
conversion of pixels.
"""

from lordfast.diffusion.cache import TensorCache, content_key
from lordfast.diffusion.families import load_model
from lordfast.diffusion.model import DTYPES, LatentDiffusion
from lordfast.diffusion.resolve import resolve_model
from lordfast.runs.host import resolve_device

__all__ = [
    "DTYPES",
    "LatentDiffusion",
    "TensorCache",
    "content_key",
    "load_model",
    "resolve_device",
    "resolve_model",
]
