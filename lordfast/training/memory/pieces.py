"""The pieces that attacks and training are made of, run on tensors without data while their bytes are counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from lordfast.adapter import LordConfig, collect_gates, sees_image
from lordfast.diffusion.model import DTYPES
from lordfast.diffusion.offload import BlockOffload
from lordfast.diffusion.topologies import Topology
from lordfast.profiling.live import LiveBytes
from lordfast.training.lora import TARGETS, add_lora
from lordfast.training.memory.model import conditioning, denoiser_of, latent_shape, materialise, vae_dtype, vae_of
from lordfast.training.memory.stand_in import stand_in

Task = Literal["attack", "stage1", "stage2"]


@dataclass(frozen=True)
class Adapters:
    """The adapters of a run: a LoRD with that gate, and in Stage 2 a LoRA of that rank on top.

    Attributes:
        gate: what of LordConfig's gate options is not its default, as (name, value), sorted.
    """

    rank: int = 4
    targets: tuple[str, ...] = TARGETS
    gate: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What one piece needs above the weights that it finds, in bytes.

    Attributes:
        kept: still there when the forward pass is done: the activations that its backward pass waits for.
        forward, backward: the most that was there in either pass.
        trained, frozen: of the adapters: numbers in fp32 that are trained, and that are not.
    """

    kept: int
    forward: int
    backward: int
    trained: int = 0
    frozen: int = 0

    @property
    def peak(self) -> int:
        return max(self.forward, self.backward)


@dataclass(frozen=True)
class Step:
    """A piece that is ready to run: `backward` takes what `forward` returns."""

    forward: Callable[[], Tensor]
    backward: Callable[[Tensor], object]
    trained: int = 0
    frozen: int = 0


def vae_piece(
    topology: Topology, side: int, batch: int, dtype: str, *, gradient: bool, checkpointing: bool = False
) -> Piece:
    """`vae_step`, counted."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _count(vae_step(topology, side, batch, dtype, gradient=gradient, checkpointing=checkpointing))


def denoiser_piece(
    topology: Topology, task: Task, side: int, batch: int, dtype: str, adapters: Adapters, **options: Any
) -> Piece:
    """`denoiser_step`, counted."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _count(denoiser_step(topology, task, side, batch, dtype, adapters, **options))


def _count(step: Step) -> Piece:
    with LiveBytes() as live:
        out = step.forward()
        kept, forward = live.now, live.peak
        live.peak = live.now
        step.backward(out)
        return Piece(kept, forward, live.peak, step.trained, step.frozen)


def vae_step(
    topology: Topology, side: int, batch: int, dtype: str, *, gradient: bool, checkpointing: bool = False
) -> Step:
    """Encode `batch` images of `side` pixels and, with `gradient`, take one of the latents at the pixels.

    Inside a FakeTensorMode nothing of it has data.
    """
    kind = vae_dtype(topology, dtype)
    vae: Any = materialise(vae_of(topology), kind)
    if checkpointing:
        vae.enable_gradient_checkpointing()
    pixels = torch.zeros(batch, 3, side, side, requires_grad=gradient)

    def forward() -> Tensor:
        with torch.set_grad_enabled(gradient):
            posterior = vae.encode(pixels.to(kind)).latent_dist
            latents, _ = posterior.mean.float() * 0.2, posterior.std.float() * 0.2
            return latents

    def backward(latents: Tensor) -> object:
        return torch.autograd.grad(latents, pixels, torch.zeros_like(latents)) if gradient else None

    return Step(forward, backward)


def denoiser_step(
    topology: Topology,
    task: Task,
    side: int,
    batch: int,
    dtype: str,
    adapters: Adapters,
    *,
    checkpointing: bool = False,
    quantize: str = "none",
    blocks: bool = False,
    cuda: bool = True,
) -> Step:
    """One step of the denoiser: L_LDM's gradient at the latents for an attack, at the adapters for the stages.

    Inside a FakeTensorMode nothing of it has data.

    Args:
        batch: images; Stage 1 makes a clean and a perturbed half of each.
        blocks: the denoiser's blocks come and go.
        cuda: count what autocast does on CUDA, where normalisation layers compute in fp32.
    """
    denoiser, trained, frozen = _adapted(topology, task, adapters, quantize)
    if checkpointing:
        denoiser.enable_gradient_checkpointing()
    kind = DTYPES[dtype]
    materialise(denoiser, kind)
    if blocks:
        BlockOffload(denoiser, torch.device("cpu"), torch.clone)
    # Training is in mixed precision; bf16 stands for fp16, whose tensors are as large.
    mixed = task != "attack" and kind != torch.float32
    if mixed and cuda:
        _fp32_norms(denoiser)
    rows = 2 * batch if task == "stage1" else batch
    shape = latent_shape(topology, side)
    latents = torch.zeros(rows, *shape, requires_grad=task == "attack")
    noise, text = torch.zeros(rows, *shape), conditioning(topology, rows, kind)
    timesteps = torch.zeros(rows, dtype=torch.long)

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            return _loss(denoiser, task, latents, noise, timesteps, text, kind)

    def backward(loss: Tensor) -> object:
        if task == "attack":
            return torch.autograd.grad(loss, latents)
        loss.backward()  # type: ignore[no-untyped-call]
        return None

    return Step(forward, backward, trained, frozen)


def _adapted(topology: Topology, task: Task, adapters: Adapters, quantize: str) -> tuple[Any, int, int]:
    """The denoiser on meta with its adapters: and how many numbers of them are trained, and are frozen."""
    denoiser: Any = denoiser_of(topology)
    if quantize != "none":
        stand_in(denoiser, quantize)
    frozen = trained = 0
    if task != "attack":
        config = LordConfig(r=adapters.rank, target_modules=list(adapters.targets), **dict(adapters.gate))
        denoiser.add_adapter(config, adapter_name="lord")
        trained = _trainable(denoiser)
    if task == "stage2":
        for parameter in denoiser.parameters():
            parameter.requires_grad_(False)
        frozen = trained
        # Adapters need no more of a model than its denoiser.
        model: Any = SimpleNamespace(unet=denoiser)
        add_lora(model, rank=adapters.rank, alpha=adapters.rank, target_modules=adapters.targets)
        trained = _trainable(denoiser)
    return denoiser, trained, frozen


def _trainable(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _loss(
    denoiser: Any,
    task: Task,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    text: dict[str, Any],
    kind: torch.dtype,
) -> Tensor:
    noisy = latents * 0.5 + noise * 0.5
    context: Any = collect_gates(denoiser) if task == "stage1" else contextlib.nullcontext({})
    with context as gates:
        prediction = denoiser(noisy.to(kind), timestep=timesteps, **text).sample.float()
    loss = (prediction - noise).square().mean(dim=(1, 2, 3)).mean()
    logits = [logit.float() for name, logit in gates.items() if sees_image(name)]
    if logits:
        each = [F.binary_cross_entropy_with_logits(logit, torch.zeros_like(logit)) for logit in logits]
        loss = loss + torch.stack(each).mean()
    return loss


def _fp32_norms(denoiser: nn.Module) -> None:
    """What CUDA's autocast does and the CPU's does not: normalisation layers compute in fp32, whatever comes in."""
    for module in denoiser.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            # Their weights are counted with the rest of the model, as they are stored.
            materialise(module, torch.float32)
            module.register_forward_pre_hook(lambda _, args: tuple(value.float() for value in args))
