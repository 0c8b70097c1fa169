"""Load a model by the pipeline class that its ``model_index.json`` names."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lordfast.diffusion import stable_diffusion, stable_diffusion_3, stable_diffusion_xl
from lordfast.diffusion.model import DTYPES, LatentDiffusion
from lordfast.diffusion.resolve import resolve_model
from lordfast.runs.host import resolve_device, without_launcher_variables

_LOADERS: dict[str, Callable[..., LatentDiffusion]] = {
    "StableDiffusionPipeline": stable_diffusion.load,
    "StableDiffusionXLPipeline": stable_diffusion_xl.load,
    "StableDiffusion3Pipeline": stable_diffusion_3.load,
}


def load_model(model: str | Path, *, device: str = "auto", dtype: str = "fp32") -> LatentDiffusion:
    """Load the parts of a latent diffusion model once, frozen.

    Args:
        model: a diffusers folder, a hub id, or ``demo`` (see `resolve_model`).
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``.
        dtype: ``fp32``, ``bf16`` or ``fp16``, of the frozen weights.

    Raises:
        ValueError: what came is no model, a family that is not supported, or a dtype that is none of the three.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    resolved_device = resolve_device(device)
    source = resolve_model(model)
    index = pipeline_index(source, str(model))
    family = index["_class_name"]
    if family not in _LOADERS:
        raise ValueError(f"model: {model} is a {family}; supported are {', '.join(_LOADERS)}")
    with without_launcher_variables(), warnings.catch_warnings():
        # transformers announces a missing torchvision, which nothing here needs.
        warnings.filterwarnings("ignore", message=".*torchvision.*")
        return _LOADERS[family](source, index=index, name=str(model), device=resolved_device, dtype=DTYPES[dtype])


def pipeline_index(source: str, shown: str) -> dict[str, Any]:
    """The ``model_index.json`` of a folder or hub id: the pipeline's class (``_class_name``), parts and options.

    Args:
        shown: what messages call it.

    Raises:
        ValueError: there is none, or it names no class.
    """
    index = Path(source) / "model_index.json"
    if not Path(source).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            index = Path(hf_hub_download(source, "model_index.json"))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ValueError(
                f"model: {shown} is no local folder, and the hub did not give its model_index.json: {error}"
            ) from error
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
        return {**found, "_class_name": str(found["_class_name"])}
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"model: {index} is no model index in diffusers format ({error})") from error
