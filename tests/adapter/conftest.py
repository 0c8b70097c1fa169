"""Tiny models, built offline, and the helpers that every adapter test needs."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import lordfast

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_DIM = 12


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def build_unet(seed: int = 0, **overrides: Any) -> UNet2DConditionModel:
    """Two blocks, one of them with attention in either direction: 32 LoRD targets."""
    config: dict[str, Any] = dict(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_DIM,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(**(config | overrides))
    return unet.eval().requires_grad_(False)


def unet_inputs(batch: int = 2, seed: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, 4, 8, 8, generator=generator)
    text = torch.randn(batch, 5, TEXT_DIM, generator=generator)
    return sample.to(dtype), torch.full((batch,), 7), text.to(dtype)


def run_unet(unet: nn.Module, inputs: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
    sample, timestep, text = inputs or unet_inputs()
    return unet(sample, timestep, encoder_hidden_states=text).sample


def lord_config(**overrides: Any) -> lordfast.LordConfig:
    """An adapter that does something from the start (B and B' are not zero)."""
    return lordfast.LordConfig(**(dict(r=2, lord_alpha=4, gate_hidden=3, init_weights=False) | overrides))


def add_lora(unet: Any, name: str = "sks", seed: int = 5, r: int = 3, alpha: float = 6.0, **overrides: Any) -> None:
    """An ordinary LoRA with weights that do something, the same ones for the same seed."""
    targets = overrides.pop("target_modules", TARGETS)
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=targets, init_lora_weights=False, **overrides)
    unet.add_adapter(config, adapter_name=name)
    generator = torch.Generator().manual_seed(seed)
    for path, parameter in sorted(unet.named_parameters()):
        if ".lora_" in path and f".{name}." in path:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def lord_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if ".lord_" in name}


def build_pipe() -> StableDiffusionPipeline:
    """A complete pipeline: byte-level tokenizer, two-layer text encoder, tiny VAE and UNet."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=32)
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=TEXT_DIM,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=2,
    )
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval().requires_grad_(False),
        tokenizer=tokenizer,
        unet=build_unet(),
        scheduler=DDIMScheduler(num_train_timesteps=20),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture
def tiny() -> SimpleNamespace:
    """The helpers of this file: under importlib mode test modules can't import them."""
    return SimpleNamespace(
        unet=build_unet,
        pipe=build_pipe,
        inputs=unet_inputs,
        run=run_unet,
        config=lord_config,
        add_lora=add_lora,
        lord_parameters=lord_parameters,
        targets=list(TARGETS),
    )


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return build_unet()


@pytest.fixture
def pipe() -> StableDiffusionPipeline:
    return build_pipe()


@pytest.fixture
def lord_unet() -> UNet2DConditionModel:
    """A UNet with an active, trainable LoRD named "lord" that changes its output."""
    unet = build_unet()
    unet.add_adapter(lord_config(), adapter_name="lord")
    return unet
