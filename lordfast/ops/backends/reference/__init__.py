"""The `reference` backend: plain PyTorch on any device and dtype, the definition of correct for the others.

Imported by `lordfast.ops.backends` only; imports torch.
"""

from .._base import Backend, Kernel
from .lord import lord_backward, lord_forward
from .pgd import pgd_step

BACKEND = Backend(
    name="reference",
    priority=0,
    missing=lambda: None,
    kernels={
        "lord_forward": Kernel(lord_forward),
        "lord_backward": Kernel(lord_backward),
        "pgd_step": Kernel(pgd_step),
    },
)
