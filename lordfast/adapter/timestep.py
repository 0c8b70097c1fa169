"""How the diffusion timestep gets from the denoiser's call to those gates in it that know it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 32
"""D, the width of the timestep's embedding."""


def embed_timesteps(timesteps: Tensor, dtype: torch.dtype) -> Tensor:
    """e(t) = [cos(t f_i), sin(t f_i)] with f_i = 10000^(-i / (D/2)), i < D/2, in `dtype`: () or (B,) -> (1 or B, D).

    The embedding of Transformers (Vaswani et al. 2017) that diffusion models use for t (Ho et al. 2020).
    """
    half = WIDTH // 2
    steps = torch.arange(half, device=timesteps.device, dtype=dtype)
    angles = timesteps.reshape(-1, 1).to(dtype) * torch.exp(-math.log(10000) / half * steps)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Clock:
    """A denoiser's forward pre-hook that leaves the timestep of the call where LoRD's layers find it.

    The timestep holds for the call alone, and, where a block is recomputed in the backward pass, for that block: by
    then the denoiser may have been called again with other timesteps.

    Attributes:
        embedding: of the timesteps of the call that is under way, (1 or B, D); None outside of calls.
    """

    def __init__(self, place: int) -> None:
        self._place = place
        self.embedding: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "embedding": None}

    def __call__(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the denoiser's forward."""
        timesteps = args[self._place] if len(args) > self._place else kwargs.get("timestep")
        if timesteps is None:
            raise ValueError(f"gate_timestep: {type(denoiser).__name__} was called without a timestep")
        sample = next((value for value in (*args, *kwargs.values()) if _is_sample(value)), None)
        self.embedding = _embedded(timesteps, sample)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            for module in denoiser.modules():
                # Where diffusers recomputes.
                if getattr(module, "gradient_checkpointing", False):
                    _remember(self, module)

    def after(self, denoiser: nn.Module, args: Any, output: Any) -> None:
        """After the denoiser's forward, even if that raised."""
        self.embedding = None

    def at(self, embedding: Tensor | None, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, called at that embedding whenever it is called."""

        def call(*args: Any, **kwargs: Any) -> Any:
            before, self.embedding = self.embedding, embedding
            try:
                return function(*args, **kwargs)
            finally:
                self.embedding = before

        return call


class _Remembering:
    """A checkpointing function whose blocks are recomputed at the timestep of their first pass."""

    def __init__(self, clock: Clock, checkpoint: Any) -> None:
        self.clock, self.checkpoint = clock, checkpoint

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return self.checkpoint(self.clock.at(self.clock.embedding, function), *args, **kwargs)


def _remember(clock: Clock, module: Any) -> None:
    checkpoint = getattr(module, "_gradient_checkpointing_func", None)
    if checkpoint is not None and not isinstance(checkpoint, _Remembering):
        module._gradient_checkpointing_func = _Remembering(clock, checkpoint)


def _is_sample(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype.is_floating_point and value.ndim > 1


def _embedded(timesteps: Any, sample: Tensor | None) -> Tensor:
    device = None if sample is None else sample.device
    timesteps = timesteps if isinstance(timesteps, Tensor) else torch.tensor(timesteps, device=device)
    if device is not None and timesteps.device != device:
        # From pinned memory the host need not wait for the device.
        timesteps = timesteps.contiguous().pin_memory() if device.type == "cuda" else timesteps
        timesteps = timesteps.to(device, non_blocking=True)
    exact = torch.float64 if sample is not None and sample.dtype == torch.float64 else torch.float32
    with torch.autocast(timesteps.device.type, enabled=False):
        return embed_timesteps(timesteps, exact)


def check_clock(denoiser: nn.Module) -> None:
    """Raise a ValueError unless the denoiser's forward takes a timestep."""
    if "timestep" not in inspect.signature(type(denoiser).forward).parameters:
        raise ValueError(
            f"gate_timestep: the forward of {type(denoiser).__name__} takes no argument timestep; expected the whole "
            "denoiser"
        )


def clock_of(denoiser: nn.Module) -> Clock:
    """The denoiser's clock, put up if there is none."""
    for hook in denoiser._forward_pre_hooks.values():
        if isinstance(hook, Clock):
            return hook
    place = list(inspect.signature(type(denoiser).forward).parameters).index("timestep") - 1
    clock = Clock(place)
    denoiser.register_forward_pre_hook(clock, with_kwargs=True)
    denoiser.register_forward_hook(clock.after, always_call=True)
    return clock


def remove_clock(denoiser: nn.Module) -> None:
    """Undo `clock_of`."""
    clocks = [hook for hook in denoiser._forward_pre_hooks.values() if isinstance(hook, Clock)]
    if not clocks:
        return
    for hooks in (denoiser._forward_pre_hooks, denoiser._forward_hooks):
        for number, hook in list(hooks.items()):
            if isinstance(hook, Clock) or isinstance(getattr(hook, "__self__", None), Clock):
                del hooks[number]
                denoiser._forward_pre_hooks_with_kwargs.pop(number, None)
                denoiser._forward_hooks_always_called.pop(number, None)
    for module in denoiser.modules():
        checkpoint = getattr(module, "_gradient_checkpointing_func", None)
        if isinstance(checkpoint, _Remembering):
            module._gradient_checkpointing_func = checkpoint.checkpoint  # type: ignore[assignment]
