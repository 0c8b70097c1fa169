"""Where a model's weights are and how many bits they have: the flags for it, and loading a model accordingly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lordfast.diffusion import LatentDiffusion, load_model
from lordfast.diffusion.offload import BlockOffload
from lordfast.diffusion.quantize import check_quantize, quantize


@dataclass(kw_only=True)
class PlacementOptions:
    """How the frozen model lies in memory. Mixed into the configs that take gradients through it."""

    quantize: Literal["none", "8bit", "4bit"] = "none"
    """Bits of the frozen denoiser's linear layers; 8bit and 4bit (nf4) need bitsandbytes and change the results."""
    offload: Literal["none", "parts", "blocks"] = "none"
    """Keep on the CPU: parts, the VAE and the text encoders while they have nothing to do; blocks, also the denoiser's
    blocks but for the one that computes, which costs much time."""


def check_placement(
    options: PlacementOptions,
    *,
    compiled: bool = False,
    optimized: bool = False,
    processes: int = 1,
    sharded: bool = False,
    whole: str | None = None,
) -> None:
    """Raise ValueError for options that don't go together, or not with the rest of a run.

    Args:
        compiled, optimized: the blocks are compiled; projections of several blocks are computed together.
        sharded: over the processes, by FSDP.
        whole: the option by which the whole denoiser is trained, with its value, if it is.
    """
    if options.quantize != "none":
        check_quantize()
    for name, value in (("quantize", options.quantize), ("offload", options.offload)):
        if whole is not None and value not in ("none", "parts"):
            raise ValueError(f"{name}: {value} needs a frozen denoiser, and {whole} trains it; expected none")
    if options.quantize != "none" and sharded:
        raise ValueError(f"quantize: {options.quantize} weights can't be sharded; expected none with fsdp")
    if options.offload != "blocks":
        return
    others = {
        f"quantize {options.quantize}": options.quantize != "none",
        "compile": compiled,
        "optimize": optimized,
        f"{processes} processes": processes > 1,
    }
    for other, there in others.items():
        if there:
            raise ValueError(f"offload: blocks can't come and go together with {other}; expected none or parts")


class Placed:
    """A model whose parts are where `options` want them.

    Attributes:
        model: on its device, except for what has been sent off.
    """

    def __init__(self, model: LatentDiffusion, blocks: BlockOffload | None, hooks: list[Any]) -> None:
        self.model = model
        self._blocks, self._hooks = blocks, hooks

    def settle(self) -> None:
        """Send off what is not in use, and bring adapters that were injected to the device. Call it before training."""
        for hook in self._hooks:
            hook.offload()
        if self._blocks is not None:
            self._blocks.settle()


def load_placed(
    name: str, options: PlacementOptions, device: torch.device, dtype: str, *, stay: tuple[str, ...] = ()
) -> Placed:
    """`load_model`, with quantised weights and parts on the CPU as `options` say.

    What does not stay on the device never was there as a whole.

    Args:
        stay: parts of the model that stay on the device in any case: ``vae``, ``text``.

    Raises:
        ValueError: as `load_model`, `check_placement` and `quantize`.
    """
    check_placement(options)
    if options.quantize == options.offload == "none":
        return Placed(load_model(name, device=str(device), dtype=dtype), None, [])
    model = load_model(name, device="cpu", dtype=dtype)
    return place(model, options, device, stay=stay)


def place(
    model: LatentDiffusion, options: PlacementOptions, device: torch.device, *, stay: tuple[str, ...] = ()
) -> Placed:
    """`load_placed` of a model that is on the CPU; it is changed in place."""
    if options.quantize != "none":
        quantize(model.unet, options.quantize, device, model.dtype)
    blocks = BlockOffload(model.unet, device) if options.offload == "blocks" else None
    hooks: list[Any] = []
    for name, value in vars(model).items():
        if isinstance(value, Tensor):
            setattr(model, name, value.to(device))
        elif isinstance(value, nn.Module) and not (value is model.unet and blocks is not None):
            kind = "text" if name.startswith("text_encoder") else name
            if options.offload == "none" or value is model.unet or kind in stay:
                nn.Module.to(value, device)
            else:
                hooks.append(_visiting(value, device, leaves_at_once=kind == "text"))
    model.device = device
    return Placed(model, blocks, hooks)


def _visiting(part: Any, device: torch.device, *, leaves_at_once: bool) -> Any:
    """Let a part come to the device when it is called, and leave after the call or when it is told to."""
    from accelerate import cpu_offload_with_hook

    part, hook = cpu_offload_with_hook(part, execution_device=device)
    if leaves_at_once:
        # Nobody takes gradients through it; the VAE's weights are needed until its backward pass.
        part.register_forward_hook(lambda *_: hook.offload())
    return hook


def recompute(model: LatentDiffusion) -> None:
    """Gradient checkpointing in the denoiser and in the VAE, whose activations are the larger ones in an attack."""
    model.unet.enable_gradient_checkpointing()
    model.vae.enable_gradient_checkpointing()
