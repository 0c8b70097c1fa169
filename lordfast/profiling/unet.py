"""The benchmark of a whole UNet: bare, with a LoRA, with LoRD eager, with LoRD fused, and as the caller prepares it."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lordfast.adapter import LordConfig
from lordfast.adapter.control import lord_layers
from lordfast.ops import available_backends, use_backend

from .accuracy import Outputs
from .baselines import eager_lord
from .machine import DTYPES
from .measure import Variant, measure
from .results import Row
from .rounds import Effort

FORWARD, STEP = "forward", "training step"

Prepare = Callable[[nn.Module], Any]


@dataclass(frozen=True)
class UnetOptions:
    """Which batch, which adapters.

    Attributes:
        side: of the latents; None for the UNet's own.
    """

    batch: int = 2
    side: int | None = None
    r: int = 4
    hidden: int = 64
    granularity: str = "token"
    seed: int = 0


@dataclass
class UnetSet:
    """The inputs of one call, and the noise that it should predict."""

    latents: Tensor  # (batch, 4, side, side), wants a gradient, as in an attack
    timestep: Tensor  # (batch,)
    text: Tensor  # (batch, 77, text width)
    noise: Tensor  # like latents
    added: dict[str, Tensor] | None = None  # what SDXL's UNet takes besides

    def to(self, dtype: torch.dtype) -> UnetSet:
        """The same inputs in another dtype."""
        latents = self.latents.detach().to(dtype).requires_grad_()
        added = None if self.added is None else {name: value.to(dtype) for name, value in self.added.items()}
        return UnetSet(latents, self.timestep, self.text.to(dtype), self.noise.to(dtype), added)


def with_adapter(unet: nn.Module, config: Any, seed: int) -> nn.Module:
    """A copy of a frozen UNet that shares its weights and has an adapter in fp32."""
    shared = {id(t): t for t in (*unet.parameters(), *unet.buffers())}
    adapted: Any = copy.deepcopy(unet, shared)
    with torch.random.fork_rng(_cuda(next(unet.parameters()).device)):
        torch.manual_seed(seed)
        adapted.add_adapter(config, adapter_name="bench")
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


@torch.no_grad()
def shrink(lord: nn.Module, adapter: str = "bench") -> None:
    """Make a random LoRD's branches a tenth of the base's outputs or so.

    At full size they make a random UNet chaotic: rounding errors grow until gradients are nothing but error, and a
    wrong kernel looks like a right one.
    """
    for layer in lord_layers(lord).values():
        for name in ("lord_B", "lord_B_adv"):
            layer.parameters_of(adapter)[name].div_(32)


def lord_gradients(lord: nn.Module, adapter: str = "bench") -> Outputs:
    """The gradients that LoRD's parameters have, as "kind/layer"."""
    found = {}
    for path, layer in lord_layers(lord).items():
        for name, parameter in layer.parameters_of(adapter).items():
            # The gate's parameters go by their names there, w1 and not lord_w1.
            kind = name if name in ("lord_A", "lord_B", "lord_B_adv") else name.removeprefix("lord_")
            if parameter.grad is not None:
                found[f"{kind}/{path}"] = parameter.grad.detach().clone()
    return found


class Stepper:
    """One model's training step: zero the gradients, forward, backward, and AdamW on what is trainable."""

    def __init__(self, model: nn.Module, capturable: bool) -> None:
        self.model = model
        trainable = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trainable, lr=1e-5, capturable=capturable) if trainable else None

    def predict(self, s: UnetSet) -> Tensor:
        """The predicted noise."""
        return self.model(s.latents, s.timestep, s.text, added_cond_kwargs=s.added, return_dict=False)[0]

    def forward(self, s: UnetSet) -> Outputs:
        """The prediction, without a graph."""
        with torch.no_grad():
            return {"y": self.predict(s)}

    def backward(self, s: UnetSet) -> Outputs:
        """Prediction and backward pass; gradients gather in the leaves."""
        self.model.zero_grad(set_to_none=True)
        s.latents.grad = None
        y = self.predict(s)
        F.mse_loss(y.float(), s.noise.float()).backward()
        return {"y": y}

    def step(self, s: UnetSet) -> Outputs:
        """A whole training step."""
        outputs = self.backward(s)
        if self._optimizer is not None:
            self._optimizer.step()
        return outputs

    def gradients(self, s: UnetSet) -> Outputs:
        """Prediction and every gradient, as "kind/layer"."""
        outputs = {**self.backward(s), "latents": s.latents.grad}
        own = {name: t.detach().clone() for name, t in outputs.items() if t is not None}
        return {**own, **lord_gradients(self.model)}


def make_sets(unet: Any, options: UnetOptions, dtype: torch.dtype, count: int) -> list[UnetSet]:
    """`count` random inputs for `unet`, on its device."""
    g, device = torch.Generator().manual_seed(options.seed), next(unet.parameters()).device
    config, batch = unet.config, options.batch
    side = options.side or config.sample_size

    def random(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=g).to(device, dtype)

    sets = []
    for _ in range(count):
        latents, noise = (random(config.in_channels, side, side) for _ in range(2))
        text = random(77, config.cross_attention_dim)
        timestep = torch.randint(0, 1000, (batch,), generator=g).to(device)
        added = None
        if config.addition_embed_type == "text_time":
            # Six sizes beside the pooled text, each as an embedding.
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            pixels = torch.tensor([8.0 * side, 8.0 * side, 0, 0, 8.0 * side, 8.0 * side])
            added = {"text_embeds": random(pooled), "time_ids": pixels.to(device, dtype).expand(batch, 6)}
        sets.append(UnetSet(latents.requires_grad_(), timestep, text, noise, added))
    return sets


def unet_variants(
    bare: nn.Module, lord: nn.Module, lora: nn.Module, prepared: Mapping[str, nn.Module], device: torch.device
) -> list[Variant[UnetSet]]:
    """Plain, LoRA, LoRD eager, the dispatcher's choice and each backend, forward and training step.

    The plain UNet's training step is the backward pass to the latents: the floor under the others.

    Args:
        prepared: copies of `lord` in other forms, by the variant's name.
    """
    found: list[Variant[UnetSet]] = []

    def add(name: str, model: nn.Module, checked: bool, **more: Any) -> None:
        # An optimizer each: they share the model's parameters, not its state.
        stepper = Stepper(model, capturable=device.type == "cuda")
        found.append(Variant(name, FORWARD, stepper.forward, checked=checked, **more))
        found.append(Variant(name, STEP, stepper.step, check=stepper.gradients, checked=checked, **more))

    add("plain", bare, checked=False)
    add("eager", lord, checked=True, within=eager_lord)
    add("peft_lora_2r", lora, checked=False)
    add("lordfast", lord, checked=True)
    for name, model in prepared.items():
        add(name, model, checked=True, optional="compiled" in name)
    for name, status in available_backends().items():
        if status == "ok":
            add(f"lordfast:{name}", lord, checked=True, within=partial(use_backend, name))
    return found


def bench_unet(
    unet: nn.Module,
    name: str,
    options: UnetOptions,
    dtype_name: str,
    effort: Effort,
    prepare: Mapping[str, Prepare] = types.MappingProxyType({}),
) -> list[Row]:
    """Check and time one UNet; rows with everything but the machine's columns.

    The check needs a copy of the UNet in float64.

    Args:
        unet: diffusers' UNet2DConditionModel, frozen, in fp32; `name` is what the rows call it.
        prepare: further variants by name: what is done, in place, to the UNet with LoRD.
    """
    import peft

    dtype, device = DTYPES[dtype_name], next(unet.parameters()).device
    # torch's own `to`: the model's warns about precisions that are meant to be. It would change what the caller has.
    bare = unet if dtype == torch.float32 else nn.Module.to(copy.deepcopy(unet), dtype)
    lord_config = LordConfig(
        r=options.r,
        lord_alpha=8 * options.r,
        gate_hidden=options.hidden,
        gate_granularity=options.granularity,
        init_weights=False,
    )
    targets = lord_config.target_modules
    rank = 2 * options.r
    lora_config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights=False)
    lord, lora = (with_adapter(bare, config, options.seed) for config in (lord_config, lora_config))
    shrink(lord)
    prepared = {}
    for variant, change in prepare.items():
        prepared[variant] = with_adapter(bare, lord_config, options.seed)
        shrink(prepared[variant])
        change(prepared[variant])
    exact = _exact(lord)
    sets = make_sets(bare, options, dtype, max(effort.draws, 2))
    variants = unet_variants(bare, lord, lora, prepared, device)
    rows = measure(variants, sets, exact, bare="plain", effort=effort, device=device)
    side = sets[0].latents.shape[-1]
    labels = {
        "op": "unet",
        "case": f"{name}, latents {side}x{side}",
        "M": options.batch,
        "x_grad": 1,
        "r": options.r,
        "H": options.hidden,
        "granularity": options.granularity,
        "dtype": dtype_name,
    }
    return [{**labels, **row} for row in rows]


def _exact(lord: nn.Module) -> Callable[[str, UnetSet], Outputs]:
    """The eager formula in a float64 copy of the UNet, as it is now: training steps move the parameters."""
    wide_unet: Any = copy.deepcopy(lord).double()
    # In float64 attention keeps its whole matrices for the backward pass: tens of gigabytes at full width.
    wide_unet.enable_gradient_checkpointing()
    stepper = Stepper(wide_unet, capturable=False)

    def exact(direction: str, s: UnetSet) -> Outputs:
        wide = s.to(torch.float64)
        with eager_lord():
            outputs = stepper.forward(wide) if direction == FORWARD else stepper.gradients(wide)
        return {name: t.double() for name, t in outputs.items()}

    return exact
