"""A UNet with LoRD and LoRAs, one call of it with everything that comes out, and a count of lordfast's operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lordfast

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def add_lord(unet: Any, name: str = "lord", **options: Any) -> Any:
    """A LoRD that does something. Its branches are small beside the base: else a random UNet is chaotic."""
    torch.manual_seed(3)
    given = {"r": 4, "lord_alpha": 8, "gate_hidden": 8, "init_weights": False, **options}
    unet.add_adapter(lordfast.LordConfig(**given), adapter_name=name)
    for path, parameter in unet.named_parameters():
        if "lord_B" in path:
            parameter.data.div_(8)
    return unet


def add_lora(unet: Any, name: str, seed: int = 0, **options: Any) -> None:
    torch.manual_seed(seed)
    given = {"r": 2, "lora_alpha": 1, "target_modules": TARGETS, "init_lora_weights": False, **options}
    unet.add_adapter(peft.LoraConfig(**given), adapter_name=name)


def small_unet(**overrides: Any) -> Any:
    """Two widths, five blocks, attention in either direction: 32 LoRD targets, float64 for exact comparisons."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 12,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**(config | overrides)).eval().requires_grad_(False).double()


class Call:
    """One call's inputs, and everything that comes out of it."""

    def __init__(self, unet: Any, *, batch: int = 2, tokens: int = 7, dtype: torch.dtype = torch.float64) -> None:
        side = unet.config.sample_size
        self.latents = randn(batch, 4, side, side, seed=1).to(dtype).requires_grad_()
        self.text = randn(batch, tokens, unet.config.cross_attention_dim, seed=2).to(dtype).requires_grad_()
        self.timestep = torch.tensor([3, 400, 7, 9])[:batch]
        self.cotangent = randn(batch, 4, side, side, seed=4).to(dtype)
        self.more: dict[str, Any] = {}
        if unet.config.addition_embed_type == "text_time":
            pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
            conditions = {"text_embeds": randn(batch, pooled, seed=5).to(dtype), "time_ids": torch.ones(batch, 6)}
            self.more["added_cond_kwargs"] = conditions

    def predict(self, unet: Any, text: Tensor | None = None) -> Tensor:
        given = self.text if text is None else text
        return unet(self.latents, self.timestep, encoder_hidden_states=given, **self.more).sample

    def outcome(self, unet: Any) -> dict[str, Tensor]:
        """The prediction, the gates' logits, and the gradients of the inputs and of all that is trainable, by kind."""
        parameters = {name: p for name, p in unet.named_parameters() if p.requires_grad}
        leaves = {"latents": self.latents} | ({"text": self.text} if self.text.requires_grad else {}) | parameters
        gates: Any = {}
        if any(isinstance(module, lordfast.LordLayer) for module in unet.modules()):
            with lordfast.collect_gates(unet) as gates:
                y = self.predict(unet)
        else:
            y = self.predict(unet)
        loss = (y * self.cotangent).sum() + sum(0.1 * logit.sin().sum() for logit in gates.values())
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        out = {"y": y.detach(), **{f"logit/{name}": logit.detach() for name, logit in gates.items()}}
        for name, grad in zip(leaves, grads, strict=True):
            kind = next((part for part in name.split(".") if part.startswith(("lord_", "lora_"))), name)
            kind = kind if kind.startswith(("lord_A", "lord_B")) else kind.removeprefix("lord_")
            if grad is not None:
                out[f"{kind}/{name}"] = grad
        return out


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-8, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


class Count(TorchDispatchMode):
    """How often each of lordfast's operations ran."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "lordfast":
            self.ops[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Counter[str]]:
    with Count() as count:
        yield count.ops


@pytest.fixture
def fusing() -> Iterator[SimpleNamespace]:
    """The helpers of this file, which test modules can't import; one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield SimpleNamespace(
        unet=small_unet, lord=add_lord, lora=add_lora, Call=Call, assert_same=assert_same, counted=counted
    )
    torch.set_num_threads(threads)
