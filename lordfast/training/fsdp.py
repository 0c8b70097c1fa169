"""FSDP: the frozen base in shards over all processes, for models of which a copy per GPU is too much.

The adapters stay whole on every process: they are a thousandth of the base, in another dtype, and what is saved. Their
gradients are averaged once a step, so checkpoints are those of a run without FSDP and either can go on with them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lordfast.training.processes import FSDP_FLAG
from lordfast.training.unwrapped import Unwrapped

_ADAPTERS = ("lora_", "lord_")


@dataclass(kw_only=True)
class FsdpOptions:
    """Mixed into the configs of training runs."""

    fsdp: bool = False
    """Over several GPUs: keep of the frozen UNet or transformer only a share on each (FSDP). As accelerate launch
    --use_fsdp."""


def wants_fsdp(config: FsdpOptions, accelerator: Any) -> bool:
    """Whether the base is to be sharded.

    Raises:
        ValueError: it is, in a single process, with a torch that can't, or compiled or optimised as well.
    """
    if not (config.fsdp or os.environ.get(FSDP_FLAG, "").lower() == "true"):
        return False
    if accelerator.num_processes == 1:
        asked = "fsdp" if config.fsdp else f"fsdp, which {FSDP_FLAG} in the environment asks for"
        raise ValueError(f"{asked}: expected several processes, which torchrun or accelerate launch starts; got one")
    # Both reach for weights of several blocks at a time, or of blocks that are not gathered.
    attention = getattr(config, "attention", "sdpa")
    for name, given in (
        ("compile", getattr(config, "compile", False)),
        ("optimize", getattr(config, "optimize", False)),
        (f"attention {attention}", attention != "sdpa"),
    ):
        if given:
            raise ValueError(f"fsdp, {name}: both were given; expected at most one")
    return True


def shard_base(denoiser: nn.Module, accelerator: Any) -> Sharded:
    """Shard the frozen weights of `denoiser` over all processes, in place, block by block.

    A block's weights are gathered when it computes, forward and backward, and dropped after. What requires a gradient,
    and every adapter, stays whole.

    Args:
        denoiser: a diffusers model with its adapters in it, on the accelerator's device.

    Returns:
        The accelerator to train it with.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    whole = {
        parameter
        for name, parameter in denoiser.named_parameters()
        if parameter.requires_grad or any(part in name for part in _ADAPTERS)
    }
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    names = set(getattr(denoiser, "_no_split_modules", None) or ())
    blocks = [module for module in denoiser.modules() if type(module).__name__ in names and module is not denoiser]
    # From the inside out: what holds other blocks takes what they have left.
    for module in [*reversed(blocks), denoiser]:
        if any(parameter not in whole for parameter in module.parameters()):
            fully_shard(module, mesh=mesh, ignored_params=whole)
    return Sharded(accelerator)


class Sharded(Unwrapped):
    """Trains replicated parameters over a sharded base: averages their gradients when they are about to be used."""

    def prepare(self, objective: nn.Module, optimizer: Any) -> tuple[nn.Module, Any]:
        """As `Unwrapped`; every process begins with the main one's trained weights."""
        for parameter in objective.parameters():
            if parameter.requires_grad:
                torch.distributed.broadcast(parameter.data, src=0)
        return super().prepare(objective, optimizer)

    def clip_grad_norm_(self, parameters: Iterable[nn.Parameter], max_norm: float = math.inf) -> Tensor:
        """The norm of the averaged gradients, clipped to `max_norm`; called once a step, before the update."""
        parameters = list(parameters)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # One message: there are hundreds of small ones.
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.num_processes
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
        return self._accelerator.clip_grad_norm_(parameters, max_norm)
