"""Complete models of the published architectures with random weights and a byte-level tokenizer, as folders to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lordfast.diffusion.model import DTYPES, LatentDiffusion
from lordfast.diffusion.stable_diffusion import StableDiffusion
from lordfast.diffusion.stable_diffusion_3 import StableDiffusion3
from lordfast.diffusion.stable_diffusion_xl import StableDiffusionXL
from lordfast.diffusion.topologies import Topology, build_denoiser, build_text_encoders, build_vae, find_topology
from lordfast.runs.host import resolve_device

_START, _END = "<|startoftext|>", "<|endoftext|>"

_FAMILIES: dict[str, type[LatentDiffusion]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
}

# Parts that a pipeline has to be told it is without.
_ABSENT: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    "StableDiffusion3Pipeline": {"text_encoder_3": None, "tokenizer_3": None},
}


def write_random(name: str, folder: str | Path, *, seed: int = 0) -> Path:
    """Write a diffusers folder that `load_model`, and the pipeline class itself, load; nothing is downloaded.

    diffusers wants to be told of SD 3 that there is no T5: ``from_pretrained(folder, text_encoder_3=None,
    tokenizer_3=None)``.

    The pictures of such a model mean nothing, but it is conditioned on text and timestep, has every layer of the
    published one, and takes images of 64 pixels.

    Args:
        name: a topology at toy width: ``sd15-narrow``, ``sd21-narrow``, ``sdxl-narrow``, ``sd3-narrow`` (without T5).
        folder: where to; made if missing.
        seed: decides the weights.

    Returns:
        `folder`.

    Raises:
        ValueError: there is no such topology at toy width.
    """
    import diffusers
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    topology = find_topology(name)
    if not name.endswith("-narrow"):
        raise ValueError(f"name: expected a topology at toy width, such as {name}-narrow, got {name!r}")
    parts = _parts(topology, seed, torch.device("cpu"))
    pipeline: Any = getattr(diffusers, topology.pipeline)(**parts, **_ABSENT.get(topology.pipeline, {}))
    pipeline.save_pretrained(folder)
    return Path(folder)


def random_model(name: str, *, device: str = "auto", dtype: str = "fp32", seed: int = 0) -> LatentDiffusion:
    """A model of a published architecture with random weights, in memory: as fast and as large as a trained one.

    Args:
        name: a topology, at full or at toy width.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``; the weights are drawn there.
        dtype: ``fp32``, ``bf16`` or ``fp16``, of the weights.
        seed: decides the weights.

    Raises:
        ValueError: an unknown topology, device or dtype.
    """
    topology, where = find_topology(name), resolve_device(device)
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    parts = _parts(topology, seed, where)
    parts["unet"] = parts.pop(_denoiser_part(topology))
    return _FAMILIES[topology.pipeline](name=name, device=where, dtype=DTYPES[dtype], **parts)


def _parts(topology: Topology, seed: int, device: torch.device) -> dict[str, Any]:
    """The parts of a pipeline by its names."""
    import diffusers

    vae = build_vae(topology, seed=seed + 1, device=device)
    _unit_latents(vae, min(topology.resolution, 128), seed)
    parts: dict[str, Any] = {
        "vae": vae,
        "scheduler": getattr(diffusers, topology.scheduler[0])(**topology.scheduler[1]),
        _denoiser_part(topology): build_denoiser(topology, seed=seed, device=device),
    }
    longest = topology.text[0][1]["max_position_embeddings"]
    for i, encoder in enumerate(build_text_encoders(topology, seed=seed + 2, device=device)):
        number = f"_{i + 1}" if i else ""
        # The second tokenizer of SDXL and SD 3 pads with "!", the first with the end of the text.
        parts[f"text_encoder{number}"] = encoder
        parts[f"tokenizer{number}"] = byte_tokenizer(longest, pad="!" if i else _END)
    return parts


def byte_tokenizer(longest: int, *, pad: str = _END) -> Any:
    """A `CLIPTokenizer` whose 514 tokens are the bytes, each also at the end of a word, and the two ends of a text."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), _START, _END]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=longest, pad_token=pad)


@torch.no_grad()
def _unit_latents(vae: Any, side: int, seed: int) -> None:
    """Make latents of pictures vary as trained ones do, by about 1: at random they hardly show beside the noise."""
    coarse = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).to(vae.device)
    pictures = torch.nn.functional.interpolate(coarse * 2 - 1, size=(side, side), mode="bilinear")
    spread = vae.encode(pictures).latent_dist.mean.std() * vae.config.scaling_factor
    last = vae.quant_conv if vae.quant_conv is not None else vae.encoder.conv_out
    # The rows behind these are the logarithm of the variance.
    last.weight[: vae.config.latent_channels] /= spread
    last.bias[: vae.config.latent_channels] /= spread


def _denoiser_part(topology: Topology) -> str:
    return "transformer" if "Transformer" in topology.denoiser[0] else "unet"
