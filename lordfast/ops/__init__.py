"""LoRD's fused operations, `lord_linear`, `lord_delta`, `lord_qkv`, `lord_stack`, `pgd_step`, and who runs them.

Knows torch and the native extension only; everything above (`lordfast.adapter` and on) may import it.
"""

from .dispatch import available_backends, use_backend
from .gate import Gate
from .linear import lord_delta, lord_linear
from .pgd import pgd_step
from .qkv import Projection, lord_qkv
from .stack import Branches, lord_stack

__all__ = [
    "Branches",
    "Gate",
    "Projection",
    "available_backends",
    "lord_delta",
    "lord_linear",
    "lord_qkv",
    "lord_stack",
    "pgd_step",
    "use_backend",
]
