"""The backends: every module in this folder that defines a `BACKEND` is one, and is found by being here.

Imported by `lordfast.ops.dispatch` only. A backend may import torch and the native extension.
"""

from __future__ import annotations

import importlib
import pkgutil

from ._base import Backend


def load_backends() -> dict[str, Backend]:
    """Every backend by name, the most wanted first."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    found = [importlib.import_module(f"{__name__}.{name}").BACKEND for name in names]
    return {backend.name: backend for backend in sorted(found, key=lambda b: -b.priority)}


__all__ = ["Backend", "load_backends"]
