"""LoRD's fused operations: `lord_linear`, `lord_delta`, `lord_qkv`, `pgd_step`, and the choice of a backend for them.

Knows torch and the native extension only; everything above (`lordfast.adapter` and on) may import it.
"""

from .dispatch import available_backends, use_backend
from .gate import Gate
from .linear import lord_delta, lord_linear
from .pgd import pgd_step
from .qkv import Projection, lord_qkv

__all__ = [
    "Gate",
    "Projection",
    "available_backends",
    "lord_delta",
    "lord_linear",
    "lord_qkv",
    "pgd_step",
    "use_backend",
]
