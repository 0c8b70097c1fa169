"""The `native` backend: the kernels of the compiled extension `lordfast._C`, chosen by the tensors' device.

Imported by `lordfast.ops.backends` only; imports torch and the extension. A module here serves one device.
"""

from __future__ import annotations

from lordfast.ops import _native

from .._base import Backend, by_device
from .._compose import qkv_of
from . import cpu_lord, cpu_pgd, cuda_lord, cuda_pgd


def _missing() -> str | None:
    return None if _native.C is not None else (_native.reason or "the extension lordfast._C is not built")


FORWARD = by_device(cpu=cpu_lord.FORWARD, cuda=cuda_lord.FORWARD)

BACKEND = Backend(
    name="native",
    priority=10,
    missing=_missing,
    kernels={
        "lord_forward": FORWARD,
        "lord_qkv_forward": qkv_of(FORWARD),
        "lord_backward": by_device(cpu=cpu_lord.BACKWARD, cuda=cuda_lord.BACKWARD),
        "pgd_step": by_device(cpu=cpu_pgd.KERNEL, cuda=cuda_pgd.KERNEL),
    },
)
