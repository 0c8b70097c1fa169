"""The `triton` backend's place in the list."""

from __future__ import annotations

from ._base import Backend


def _missing() -> str | None:
    return "not built: this version has no Triton kernels"


BACKEND = Backend(name="triton", priority=20, missing=_missing)
