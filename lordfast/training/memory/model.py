"""A model without data: its modules with fake weights, as an attack, Stage 1 or Stage 2 would hold them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lordfast.diffusion.configs import vae_factor
from lordfast.diffusion.model import DTYPES
from lordfast.diffusion.topologies import Topology, build


@dataclass(frozen=True)
class Weights:
    """How many numbers the parts of a model hold, and how many of the denoiser's a switch reaches.

    Attributes:
        denoiser, vae, text: all numbers of the part, text encoders together.
        linear: of the denoiser, those in layers that `quantised_layers` names.
        blocks: of the denoiser, those in blocks that come and go, and those of the largest such block.
    """

    denoiser: int
    vae: int
    text: int
    linear: int
    blocks: int
    largest_block: int


def part(library: str, cls: str, config: dict[str, Any]) -> nn.Module:
    """One part on the meta device, frozen; entries of `config` that this version of the library lacks are left out."""
    if library == "diffusers":
        import diffusers

        known = inspect.signature(getattr(diffusers, cls).__init__).parameters
        config = {name: value for name, value in config.items() if name in known}
    return build(library, cls, config, device="meta")


def denoiser_of(topology: Topology) -> nn.Module:
    """The denoiser of `topology` on the meta device."""
    return part("diffusers", *topology.denoiser)


def vae_of(topology: Topology) -> nn.Module:
    """The autoencoder of `topology` on the meta device."""
    return part("diffusers", "AutoencoderKL", topology.vae)


def vae_dtype(topology: Topology, dtype: str) -> torch.dtype:
    """The dtype that the autoencoder keeps in a model of `dtype`."""
    keeps = dtype == "fp16" and topology.vae.get("force_upcast", True)
    return torch.float32 if keeps else DTYPES[dtype]


def numbers(module: nn.Module) -> int:
    """How many parameters a module has."""
    return sum(parameter.numel() for parameter in module.parameters())


def make_fake(module: nn.Module, dtype: torch.dtype, *, keep: bool = True) -> nn.Module:
    """Give a module on meta fake tensors on the CPU instead, in place; to be called inside a FakeTensorMode.

    Args:
        dtype: of frozen parameters; those that are trained are fp32.
        keep: parameters that are neither frozen nor of a floating dtype stay what they are.
    """
    for owner in module.modules():
        for name, value in owner._parameters.items():
            if value is not None:
                kind = value.dtype if value.requires_grad or not value.is_floating_point() else dtype
                fresh = torch.empty(value.shape, dtype=kind, device="cpu")
                owner._parameters[name] = nn.Parameter(fresh, requires_grad=value.requires_grad)
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                kind = dtype if buffer.is_floating_point() else buffer.dtype
                owner._buffers[name] = torch.empty(buffer.shape, dtype=kind, device="cpu")
    return module


def latent_shape(topology: Topology, side: int) -> tuple[int, int, int]:
    """(C, h, w) of the latents of a square image of `side` pixels."""
    small = side // vae_factor(topology.vae)
    return int(topology.vae["latent_channels"]), small, small


def conditioning(topology: Topology, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """Keyword arguments of the denoiser, of the right shapes: what its family conditions on.

    Raises:
        ValueError: a denoiser of another family.
    """
    cls, config = topology.denoiser

    def empty(*shape: int) -> Tensor:
        return torch.empty(batch, *shape, dtype=dtype)

    # The longest text that the CLIP encoders of all these families read.
    tokens = max((int(text.get("max_position_embeddings", 77)) for _, text in topology.text), default=77)
    if cls == "UNet2DConditionModel":
        found: dict[str, Any] = {"encoder_hidden_states": empty(tokens, config["cross_attention_dim"])}
        if config.get("addition_embed_type") == "text_time":
            pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
            found["added_cond_kwargs"] = {"text_embeds": empty(pooled), "time_ids": empty(6)}
        return found
    if cls == "SD3Transformer2DModel":
        # T5's 256 tokens follow CLIP's, as zeros where there is no T5.
        found = {"encoder_hidden_states": empty(tokens + 256, config["joint_attention_dim"])}
        return {**found, "pooled_projections": empty(config["pooled_projection_dim"])}
    raise ValueError(f"model: {topology.name} has a {cls}; expected a UNet2DConditionModel or SD3Transformer2DModel")


def side_multiple(topology: Topology) -> int:
    """What the sides of images must be multiples of, in pixels."""
    _, config = topology.denoiser
    halvings = 2 ** (len(config["block_out_channels"]) - 1) if "block_out_channels" in config else 1
    return vae_factor(topology.vae) * max(halvings, int(config.get("patch_size") or 1))
