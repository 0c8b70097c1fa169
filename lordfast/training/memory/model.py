"""A model by its configs: its modules without its weights, and what goes into them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

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


def materialise(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Bring a module from meta to the CPU in place, with small random weights; fake ones inside a FakeTensorMode.

    Args:
        dtype: of frozen parameters; those that are trained are fp32.
    """
    for owner in module.modules():
        for name, value in owner._parameters.items():
            if value is not None:
                fresh = _fresh(value, value.dtype if value.requires_grad else dtype)
                owner._parameters[name] = nn.Parameter(fresh, requires_grad=value.requires_grad)
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = _fresh(buffer, dtype)
    return module


def _fresh(like: Tensor, dtype: torch.dtype) -> Tensor:
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype, device="cpu")
    found = torch.empty(like.shape, dtype=dtype, device="cpu")
    # Drawing thousands of tensors takes long, also where there is nothing to draw.
    return found if isinstance(found, FakeTensor) else found.normal_(std=0.02)


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

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(batch, *shape, dtype=dtype)

    # The longest text that the CLIP encoders of all these families read.
    tokens = max((int(text.get("max_position_embeddings", 77)) for _, text in topology.text), default=77)
    if cls == "UNet2DConditionModel":
        found: dict[str, Any] = {"encoder_hidden_states": zeros(tokens, config["cross_attention_dim"])}
        if config.get("addition_embed_type") == "text_time":
            pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
            found["added_cond_kwargs"] = {"text_embeds": zeros(pooled), "time_ids": zeros(6)}
        return found
    if cls == "SD3Transformer2DModel":
        # T5's 256 tokens follow CLIP's, as zeros where there is no T5.
        found = {"encoder_hidden_states": zeros(tokens + 256, config["joint_attention_dim"])}
        return {**found, "pooled_projections": zeros(config["pooled_projection_dim"])}
    raise ValueError(f"model: {topology.name} has a {cls}; expected a UNet2DConditionModel or SD3Transformer2DModel")


def side_multiple(topology: Topology) -> int:
    """What the sides of images must be multiples of, in pixels."""
    _, config = topology.denoiser
    halvings = 2 ** (len(config["block_out_channels"]) - 1) if "block_out_channels" in config else 1
    return vae_factor(topology.vae) * max(halvings, int(config.get("patch_size") or 1))
