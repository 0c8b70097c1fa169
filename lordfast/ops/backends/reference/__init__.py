"""The `reference` backend: plain PyTorch on any device and dtype, the definition of correct for the others.

Imported by `lordfast.ops.backends` only; imports torch.
"""

from .._base import Backend, Kernel
from .._compose import qkv_of
from .lord import lord_backward, lord_forward
from .pgd import pgd_step

BACKEND = Backend(
    name="reference",
    priority=0,
    missing=lambda: None,
    kernels={
        "lord_forward": Kernel(lord_forward),
        "lord_qkv_forward": qkv_of(Kernel(lord_forward)),
        "lord_backward": Kernel(lord_backward),
        "pgd_step": Kernel(pgd_step),
    },
)
