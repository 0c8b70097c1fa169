"""The `native` backend: the kernels of the compiled extension `lordfast._C`, chosen by the tensors' device.

Imported by `lordfast.ops.backends` only; imports torch and the extension. A module here serves one device.
"""

from __future__ import annotations

from lordfast.ops import _native

from .._base import Backend, by_device
from . import cpu_lord, cpu_pgd


def _missing() -> str | None:
    return None if _native.C is not None else (_native.reason or "the extension lordfast._C is not built")


BACKEND = Backend(
    name="native",
    priority=10,
    missing=_missing,
    kernels={
        "lord_forward": by_device(cpu=cpu_lord.FORWARD),
        "lord_backward": by_device(cpu=cpu_lord.BACKWARD),
        "pgd_step": by_device(cpu=cpu_pgd.KERNEL),
    },
)
