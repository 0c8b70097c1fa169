"""Networks of transformers, from a folder or the hub: all of their weights or none."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lordfast.evaluation.measure import Unavailable
from lordfast.pixels import Uint8Image, check_image


def load_parts(source: str, argument: str, **loaders: Callable[..., Any]) -> dict[str, Any]:
    """What each of `loaders`, a ``from_pretrained``, makes of `source`, under the same name.

    Raises:
        Unavailable: `source` is no folder and no hub id that can be reached, or holds something else.
    """
    from safetensors import SafetensorError

    try:
        return {name: load(source) for name, load in loaders.items()}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unavailable(f"{argument}: {source} can't be loaded: {reason}") from error


def complete(loaded: tuple[Any, dict[str, Any]], source: str, argument: str, spare: Sequence[str] = ()) -> Any:
    """The network of ``from_pretrained(..., output_loading_info=True)``, fp32 and in evaluation mode.

    Args:
        spare: beginnings of the names of weights that nobody uses and many files lack.

    Raises:
        Unavailable: weights are missing, which transformers would make up.
    """
    network, report = loaded
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(tuple(spare)))
    if missing:
        raise Unavailable(f"{argument}: {source} lacks {len(missing)} weights, such as {missing[0]}")
    return network.float().eval().requires_grad_(False)


def described(*configs: dict[str, Any]) -> str:
    """What a network or a processor is, for its cache key: its config without where it lay."""
    kept = [{name: value for name, value in config.items() if not name.startswith("_")} for config in configs]
    return json.dumps(kept, sort_keys=True, default=str)


def pixel_values(processor: Any, images: Sequence[Uint8Image], device: torch.device) -> Tensor:
    """What an image processor makes of uint8 images (H, W, 3) of any sizes: (B, 3, h, w)."""
    for image in images:
        check_image(image)
    return torch.cat([processor(images=image, return_tensors="pt")["pixel_values"] for image in images]).to(device)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length 1, float64 on the CPU."""
    return torch.nn.functional.normalize(rows.double().cpu(), dim=1)
