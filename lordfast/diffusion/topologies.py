"""The published architectures as configs: built with random weights, at full or at toy width, for benchmarks, memory
estimates and tests. Nothing is downloaded."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Config = dict[str, Any]


@dataclass(frozen=True)
class Topology:
    """The parts of one model family, as their libraries' configs.

    Attributes:
        name: ``sd15``, ``sd21``, ``sdxl``, ``sd3``, with ``-narrow`` behind it for the toy widths.
        pipeline: diffusers' pipeline class.
        resolution: side in pixels of the images it was made for.
        denoiser: (class in diffusers, config); ``vae``: the config of its AutoencoderKL.
        text: (class in transformers, config) of each text encoder.
        scheduler: (class in diffusers, config).
    """

    name: str
    pipeline: str
    resolution: int
    denoiser: tuple[str, Config]
    vae: Config
    text: tuple[tuple[str, Config], ...]
    scheduler: tuple[str, Config]


_VAE: Config = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_DDPM: Config = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "steps_offset": 1,
}
_UNET_15: Config = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}
_CLIP_L: Config = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
_CLIP_H: Config = {
    **_CLIP_L,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
_CLIP_BIG_G: Config = {
    **_CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
_WIDE: dict[str, Topology] = {
    "sd15": Topology(
        "sd15",
        "StableDiffusionPipeline",
        512,
        ("UNet2DConditionModel", _UNET_15),
        _VAE,
        (("CLIPTextModel", _CLIP_L),),
        ("DDPMScheduler", {**_DDPM, "prediction_type": "epsilon"}),
    ),
    "sd21": Topology(
        "sd21",
        "StableDiffusionPipeline",
        768,
        (
            "UNet2DConditionModel",
            {
                **_UNET_15,
                "sample_size": 96,
                "cross_attention_dim": 1024,
                "attention_head_dim": (5, 10, 20, 20),
                "use_linear_projection": True,
                "upcast_attention": True,
            },
        ),
        {**_VAE, "sample_size": 768},
        (("CLIPTextModel", _CLIP_H),),
        ("DDPMScheduler", {**_DDPM, "prediction_type": "v_prediction"}),
    ),
    "sdxl": Topology(
        "sdxl",
        "StableDiffusionXLPipeline",
        1024,
        (
            "UNet2DConditionModel",
            {
                "sample_size": 128,
                "block_out_channels": (320, 640, 1280),
                "layers_per_block": 2,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "transformer_layers_per_block": (1, 2, 10),
                "cross_attention_dim": 2048,
                "attention_head_dim": (5, 10, 20),
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
                "norm_num_groups": 32,
            },
        ),
        {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        (("CLIPTextModel", _CLIP_L), ("CLIPTextModelWithProjection", _CLIP_BIG_G)),
        ("DDPMScheduler", {**_DDPM, "prediction_type": "epsilon"}),
    ),
    "sd3": Topology(
        "sd3",
        "StableDiffusion3Pipeline",
        1024,
        (
            "SD3Transformer2DModel",
            {
                "sample_size": 128,
                "patch_size": 2,
                "in_channels": 16,
                "out_channels": 16,
                "num_layers": 24,
                "attention_head_dim": 64,
                "num_attention_heads": 24,
                "joint_attention_dim": 4096,
                "caption_projection_dim": 1536,
                "pooled_projection_dim": 2048,
                "pos_embed_max_size": 192,
            },
        ),
        {
            **_VAE,
            "latent_channels": 16,
            "sample_size": 1024,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        (("CLIPTextModelWithProjection", _CLIP_L), ("CLIPTextModelWithProjection", _CLIP_BIG_G)),
        ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 1000, "shift": 3.0}),
    ),
}

# What a toy width changes. The layers stay as many and as connected: every target module is there.
_NARROW_TEXT: Config = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 514}
_NARROW: dict[str, tuple[int, Config, tuple[Config, ...]]] = {
    "sd15": (
        64,
        {
            "sample_size": 8,
            "block_out_channels": (32, 32, 64, 64),
            "cross_attention_dim": 24,
            "norm_num_groups": 8,
        },
        ({"hidden_size": 24},),
    ),
    "sd21": (
        64,
        {
            "sample_size": 8,
            "block_out_channels": (32, 32, 64, 64),
            "cross_attention_dim": 32,
            "attention_head_dim": (2, 2, 4, 4),
            "norm_num_groups": 8,
        },
        ({"hidden_size": 32},),
    ),
    "sdxl": (
        64,
        {
            "sample_size": 8,
            "block_out_channels": (16, 32, 32),
            "cross_attention_dim": 40,
            "attention_head_dim": (2, 2, 4),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 6 * 8,
            "norm_num_groups": 8,
        },
        ({"hidden_size": 16, "projection_dim": 16}, {"hidden_size": 24, "projection_dim": 24}),
    ),
    "sd3": (
        64,
        {
            "sample_size": 8,
            "num_layers": 4,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "joint_attention_dim": 40,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 40,
            "pos_embed_max_size": 16,
        },
        ({"hidden_size": 16, "projection_dim": 16}, {"hidden_size": 24, "projection_dim": 24}),
    ),
}


def _narrow(wide: Topology) -> Topology:
    resolution, denoiser, text = _NARROW[wide.name]
    return Topology(
        f"{wide.name}-narrow",
        wide.pipeline,
        resolution,
        (wide.denoiser[0], {**wide.denoiser[1], **denoiser}),
        {**wide.vae, "block_out_channels": (16, 16, 32, 32), "norm_num_groups": 8, "sample_size": resolution},
        tuple(
            (cls, {**config, **_NARROW_TEXT, **own, "bos_token_id": 512, "eos_token_id": 513})
            for (cls, config), own in zip(wide.text, text, strict=True)
        ),
        wide.scheduler,
    )


TOPOLOGIES: dict[str, Topology] = {**_WIDE, **{f"{name}-narrow": _narrow(wide) for name, wide in _WIDE.items()}}
"""Stable Diffusion 1.5, 2.1 (768, v-prediction), XL and 3 (without T5), and each at toy width."""


def find_topology(name: str) -> Topology:
    """The topology of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in TOPOLOGIES:
        raise ValueError(f"topology: expected one of {', '.join(TOPOLOGIES)}, got {name!r}")
    return TOPOLOGIES[name]


def build(library: str, cls: str, config: Config, *, seed: int = 0, device: torch.device | str = "cpu") -> nn.Module:
    """One part with random weights in fp32, frozen, in evaluation mode; on ``meta`` it takes no memory.

    Args:
        library: ``diffusers`` or ``transformers``.
        device: where the weights are drawn.
    """
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        if library == "diffusers":
            import diffusers

            part = getattr(diffusers, cls)(**copy.deepcopy(config))
        else:
            import transformers

            kind = getattr(transformers, cls)
            part = kind(kind.config_class(**copy.deepcopy(config)))
    return part.requires_grad_(False).eval()


def build_denoiser(topology: Topology, *, seed: int = 0, device: torch.device | str = "cpu") -> nn.Module:
    """The UNet or transformer of `topology`, as `build` makes it."""
    return build("diffusers", *topology.denoiser, seed=seed, device=device)


def build_vae(topology: Topology, *, seed: int = 0, device: torch.device | str = "cpu") -> nn.Module:
    """The autoencoder of `topology`, as `build` makes it."""
    return build("diffusers", "AutoencoderKL", topology.vae, seed=seed, device=device)


def build_text_encoders(
    topology: Topology, *, seed: int = 0, device: torch.device | str = "cpu"
) -> tuple[nn.Module, ...]:
    """Its text encoders, in order, as `build` makes them."""
    return tuple(
        build("transformers", cls, config, seed=seed + i, device=device)
        for i, (cls, config) in enumerate(topology.text)
    )
