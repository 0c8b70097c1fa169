"""lordfast: the LoRD defence of latent diffusion models against adversarial perturbations, and how it is measured.

The names below are the adapter's public face, and the fusion of a model that carries it; they load on first use, so
that ``import lordfast`` itself stays cheap (no torch, no peft). Everything else lives in the subpackages.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lordfast.adapter import (
        LordConfig,
        LordLayer,
        LordModel,
        collect_gates,
        detection_loss,
        freeze_lord,
        load_lora,
        load_lord,
        lord_disabled,
        override_lambda,
        remove_lord,
        save_lora,
        save_lord,
        sees_image,
        unfreeze_lord,
    )
    from lordfast.diffusion.fusion import optimize, restore

try:
    __version__ = importlib.metadata.version("lordfast")
except importlib.metadata.PackageNotFoundError:
    # A source tree on sys.path that was never installed.
    __version__ = "0.0.0+source"

__all__ = [
    "LordConfig",
    "LordLayer",
    "LordModel",
    "__version__",
    "collect_gates",
    "detection_loss",
    "freeze_lord",
    "load_lora",
    "load_lord",
    "lord_disabled",
    "optimize",
    "override_lambda",
    "remove_lord",
    "restore",
    "save_lora",
    "save_lord",
    "sees_image",
    "unfreeze_lord",
]

_ELSEWHERE = {"optimize": "lordfast.diffusion.fusion", "restore": "lordfast.diffusion.fusion"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        value = getattr(importlib.import_module(_ELSEWHERE.get(name, "lordfast.adapter")), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
