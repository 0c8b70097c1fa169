"""The `triton` backend: fused kernels for CUDA devices.

Imported by `lordfast.ops.backends` only; imports torch, and triton when it is first used.
"""

from __future__ import annotations

from .._base import Backend


def _missing() -> str | None:
    return "not built: this version has no Triton kernels"


BACKEND = Backend(name="triton", priority=20, missing=_missing, devices=("cuda",))
