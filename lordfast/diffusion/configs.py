"""The parts of a model by its config files alone, without its weights: what a `Topology` is made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lordfast.diffusion.families import pipeline_index
from lordfast.diffusion.resolve import resolve_model
from lordfast.diffusion.topologies import TOPOLOGIES, Config, Topology

_DENOISERS = ("unet", "transformer")


def read_topology(model: str | Path) -> Topology:
    """The topology of a published one's name, or of a model in diffusers format.

    Args:
        model: a name such as ``sdxl`` (see `TOPOLOGIES`), a folder, a hub id (its config files are downloaded, a few
            kilobytes), or ``demo``.

    Raises:
        ValueError: it is none of these, or lacks a denoiser or an ``AutoencoderKL``.
    """
    if str(model) in TOPOLOGIES:
        return TOPOLOGIES[str(model)]
    try:
        source = resolve_model(model)
    except ValueError as error:
        raise ValueError(f"{error}; published topologies are {', '.join(TOPOLOGIES)}") from error
    index = pipeline_index(source, str(model))
    pipeline = index["_class_name"]
    denoiser = next((name for name in _DENOISERS if _is_part(index.get(name))), None)
    vae = index.get("vae")
    if denoiser is None or not _is_part(vae) or vae[1] != "AutoencoderKL":  # type: ignore[index]
        raise ValueError(f"model: {model}, a {pipeline}, has no denoiser or no AutoencoderKL to estimate")
    vae_config = _read(source, "vae/config.json", model)
    denoiser_config = _read(source, f"{denoiser}/config.json", model)
    texts = [name for name in sorted(index) if name.startswith("text_encoder") and _is_part(index[name])]
    return Topology(
        str(model),
        pipeline,
        _side(denoiser_config) * vae_factor(vae_config),
        (index[denoiser][1], denoiser_config),
        vae_config,
        tuple((index[name][1], _read(source, f"{name}/config.json", model)) for name in texts),
        (index["scheduler"][1], {}) if _is_part(index.get("scheduler")) else ("", {}),
    )


def vae_factor(config: Mapping[str, Any]) -> int:
    """Pixels per latent, along one side, of an AutoencoderKL with this config."""
    return 2 ** (len(config["block_out_channels"]) - 1)


def _side(config: Mapping[str, Any]) -> int:
    size = config["sample_size"]
    return int(size if isinstance(size, int) else size[0])


def _is_part(entry: Any) -> bool:
    # What a pipeline has no part for is [null, null].
    return isinstance(entry, list) and len(entry) == 2 and None not in entry


def _read(source: str, file: str, model: str | Path) -> Config:
    path = Path(source) / file
    try:
        if not Path(source).is_dir():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(source, file))
        # What begins so says where the file came from.
        return {key: value for key, value in json.loads(path.read_text("utf-8")).items() if not key.startswith("_")}
    # The hub's own errors are OSErrors.
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"model: {file} of {model} can't be read: {error}") from error
