"""The benchmark of a whole UNet of SD1.5's topology: bare, with a LoRA, with LoRD eager, and with LoRD fused.

The weights are random. `small` has the topology and all 128 attention targets at widths (32, 32, 64, 64) on 8 x 8
latents: 2.45 M parameters that fit in a CPU's caches, so it measures what a call costs more than what a byte does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
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


@dataclass(frozen=True)
class Width:
    """The sizes of a UNet and of its inputs."""

    channels: tuple[int, ...]
    text: int
    groups: int
    side: int


WIDTHS = {"small": Width((32, 32, 64, 64), 24, 8, 8), "full": Width((320, 640, 1280, 1280), 768, 32, 64)}


@dataclass(frozen=True)
class UnetOptions:
    """Which UNet, which batch, which adapters."""

    width: str = "small"
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

    def to(self, dtype: torch.dtype) -> UnetSet:
        """The same inputs in another dtype."""
        latents = self.latents.detach().to(dtype).requires_grad_()
        return UnetSet(latents, self.timestep, self.text.to(dtype), self.noise.to(dtype))


def build_unet(width: Width, seed: int, device: torch.device) -> nn.Module:
    """A random, frozen UNet of SD1.5's topology in fp32."""
    from diffusers import UNet2DConditionModel

    # Drawn where it will be: for the full width that takes a CPU half a minute.
    with torch.random.fork_rng(_cuda(device)), device:
        torch.manual_seed(seed)
        unet: Any = UNet2DConditionModel(
            sample_size=width.side,
            block_out_channels=width.channels,
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            cross_attention_dim=width.text,
            attention_head_dim=8,
            norm_num_groups=width.groups,
        )
    return unet.requires_grad_(False).eval()


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
def shrink(lord: nn.Module) -> None:
    """Make a random LoRD's branches a tenth of the base's outputs or so.

    At full size they make a random UNet chaotic: rounding errors grow until gradients are nothing but error, and a
    wrong kernel looks like a right one.
    """
    for layer in lord_layers(lord).values():
        for name in ("lord_B", "lord_B_adv"):
            layer.parameters_of("bench")[name].div_(32)


class Stepper:
    """One model's training step: zero the gradients, forward, backward, and AdamW on what is trainable."""

    def __init__(self, model: nn.Module, capturable: bool) -> None:
        self.model = model
        trainable = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trainable, lr=1e-5, capturable=capturable) if trainable else None

    def predict(self, s: UnetSet) -> Tensor:
        """The predicted noise."""
        return self.model(s.latents, s.timestep, s.text, return_dict=False)[0]

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
        for path, layer in lord_layers(self.model).items():
            for name, parameter in layer.parameters_of("bench").items():
                # The gate's parameters go by their names there, w1 and not lord_w1.
                kind = name if name in ("lord_A", "lord_B", "lord_B_adv") else name.removeprefix("lord_")
                outputs[f"{kind}/{path}"] = parameter.grad
        return {name: t.detach().clone() for name, t in outputs.items() if t is not None}


def make_sets(
    options: UnetOptions, width: Width, dtype: torch.dtype, device: torch.device, count: int
) -> list[UnetSet]:
    """`count` random inputs."""
    g = torch.Generator().manual_seed(options.seed)
    side, batch = options.side or width.side, options.batch
    sets = []
    for _ in range(count):
        latents, noise = (torch.randn(batch, 4, side, side, generator=g).to(device, dtype) for _ in range(2))
        text = torch.randn(batch, 77, width.text, generator=g).to(device, dtype)
        timestep = torch.randint(0, 1000, (batch,), generator=g).to(device)
        sets.append(UnetSet(latents.requires_grad_(), timestep, text, noise))
    return sets


def unet_variants(bare: nn.Module, lord: nn.Module, lora: nn.Module, device: torch.device) -> list[Variant[UnetSet]]:
    """Plain, LoRA, LoRD eager, the dispatcher's choice and each backend, forward and training step.

    The plain UNet's training step is the backward pass to the latents: the floor under the others.
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
    for name, status in available_backends().items():
        if status == "ok":
            add(f"lordfast:{name}", lord, checked=True, within=partial(use_backend, name))
    return found


def bench_unet(options: UnetOptions, dtype_name: str, device: torch.device, effort: Effort) -> list[Row]:
    """Check and time one UNet; rows with everything but the machine's columns.

    The check needs a copy of the UNet in float64.
    """
    import peft

    width, dtype = WIDTHS[options.width], DTYPES[dtype_name]
    # torch's own `to`: the model's warns about precisions that are meant to be.
    bare = nn.Module.to(build_unet(width, options.seed, device), dtype)
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
    exact = _exact(lord)
    sets = make_sets(options, width, dtype, device, max(effort.draws, 2))
    variants = unet_variants(bare, lord, lora, device)
    rows = measure(variants, sets, exact, bare="plain", effort=effort, device=device)
    side = options.side or width.side
    labels = {
        "op": "unet",
        "case": f"sd15 {options.width}, latents {side}x{side}",
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
