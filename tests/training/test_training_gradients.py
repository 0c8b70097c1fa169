"""Two processes against one: the gradients of a step, what is sent, and what each holds, with DDP and with FSDP."""

import argparse
import unittest.mock
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lordfast.adapter import LordConfig
from lordfast.diffusion.topologies import build, find_topology
from lordfast.training.fsdp import FsdpOptions, shard_base, wants_fsdp
from lordfast.training.loop import Objective, TrainingConfig, train
from lordfast.training.processes import FSDP_FLAG, make_accelerator

EFFECTIVE = 4
WAYS = ("ddp-fp32", "fsdp-fp32", "fsdp-bf16")


class Denoise(Objective):
    """The squared error of a prediction."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        dtype = next(p.dtype for p in self.unet.parameters() if not p.requires_grad)
        x, text, pooled, ids, noise = (batch[name].to(dtype) for name in ("x", "text", "pooled", "ids", "noise"))
        extra = {"text_embeds": pooled, "time_ids": ids}
        out = self.unet(x, batch["timesteps"], encoder_hidden_states=text, added_cond_kwargs=extra).sample
        return {"loss": (out - noise).square().mean().float()}


class Draws:
    """Everything drawn for an example is drawn from its generator."""

    def __len__(self) -> int:
        return EFFECTIVE

    def __call__(self, indices: Sequence[int], generators: Sequence[torch.Generator]) -> dict[str, Any]:
        shapes = {"x": (4, 8, 8), "text": (5, 40), "pooled": (24,), "noise": (4, 8, 8)}
        drawn = {
            name: torch.stack([torch.randn(shape, generator=g) for g in generators]) for name, shape in shapes.items()
        }
        times = torch.stack([torch.randint(1000, (), generator=g) for g in generators])
        return {**drawn, "timesteps": times, "ids": torch.full((len(indices), 6), 64.0)}


class Watched:
    """An accelerator that keeps the gradients that are clipped, and counts the bytes of gradients that are averaged."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.gradients: list[Tensor] = []
        self.sent = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def prepare(self, *parts: Any) -> Any:
        wrapped, optimizer = self._accelerator.prepare(*parts)
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

            def count(group: Any, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
                self.sent += bucket.buffer().nbytes
                return allreduce_hook(group, bucket)

            wrapped.register_comm_hook(None, count)
        return wrapped, optimizer

    def clip_grad_norm_(self, parameters: list[nn.Parameter], *rest: Any) -> Tensor:
        reduce = torch.distributed.all_reduce

        def count(tensor: Tensor, *more: Any) -> Any:
            self.sent += tensor.nbytes
            return reduce(tensor, *more)

        with unittest.mock.patch.object(torch.distributed, "all_reduce", count):
            norm = self._accelerator.clip_grad_norm_(parameters, *rest)
        self.gradients = [parameter.grad.clone() for parameter in parameters]
        return norm


def unet(dtype: torch.dtype) -> nn.Module:
    """A toy SDXL with a LoRD whose branches are not zero, in fp32 above a base of `dtype`."""
    library, config = find_topology("sdxl-narrow").denoiser
    # Two of its ten layers a block: time goes into their number.
    denoiser = build("diffusers", library, {**config, "transformer_layers_per_block": (1, 2, 2)})
    nn.Module.to(denoiser, dtype=dtype)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        denoiser.add_adapter(LordConfig(r=2, lord_alpha=2, init_weights=False), adapter_name="lord")
    for parameter in denoiser.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.promote_types(dtype, torch.float32))
    return denoiser


def step(way: str, out: Path) -> dict[str, Any]:
    """`way` is ``KIND-DTYPE``; the gradients, the loss, the bytes of the parameters here, the bytes sent."""
    kind, dtype = way.split("-")
    denoiser = unet({"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}[dtype])
    accelerator = make_accelerator("fp32" if dtype == "fp64" else dtype, torch.device("cpu"))
    whole = sum(p.nbytes for p in denoiser.parameters() if not p.requires_grad)
    used = Watched(shard_base(denoiser, accelerator) if kind == "fsdp" else accelerator)
    config = TrainingConfig(
        out=out, steps=1, accumulate=2, batch_size=EFFECTIVE // 2 // accelerator.num_processes, clip_norm=0.0
    )
    result = train(Denoise(denoiser), Draws(), config, used)
    here = sum(
        (p.to_local() if hasattr(p, "to_local") else p).nbytes for p in denoiser.parameters() if not p.requires_grad
    )
    trained = sum(p.nbytes for p in denoiser.parameters() if p.requires_grad)
    weights = {name: p.detach() for name, p in denoiser.named_parameters() if p.requires_grad}
    return {
        "gradients": used.gradients,
        "weights": weights,
        "loss": result["loss"],
        "sent": used.sent,
        "trained": trained,
        "base": whole,
        "base_here": here,
    }


@pytest.fixture(scope="module")
def one() -> dict[str, dict[str, Any]]:
    """The step in one process, which has all of the batch, in each dtype."""
    return {dtype: step(f"one-{dtype}", Path(".")) for dtype in ("fp32", "bf16", "fp64")}


def flat(found: dict[str, Any]) -> Tensor:
    return torch.cat([gradient.double().flatten() for gradient in found["gradients"]])


def test_two_processes_have_the_gradients_of_one(one: dict[str, Any], processes: Any, tmp_path: Path) -> None:
    def work() -> None:
        for way in WAYS:
            found = step(way, tmp_path)
            torch.save(found, tmp_path / f"{way}-{torch.distributed.get_rank()}.pt")

    started = processes(work)
    assert started.wait() == [0, 0], started.output(0)
    exact = flat(one["fp64"])
    assert exact.norm() > 0.01
    for way in WAYS:
        first, second = (torch.load(tmp_path / f"{way}-{rank}.pt") for rank in range(2))
        dtype = way.split("-")[1]
        assert torch.equal(flat(first), flat(second)), way
        assert all(torch.equal(first["weights"][name], value) for name, value in second["weights"].items())
        # Both round; neither may be further from the truth than the other's rounding explains.
        allowed = 2 * (flat(one[dtype]) - exact).norm()
        assert (flat(first) - exact).norm() <= allowed, way
        assert abs(first["loss"] - one["fp64"]["loss"]) <= {"fp32": 1e-5, "bf16": 2**-7}[dtype] * one["fp64"]["loss"]
        # All trained gradients once in fp32, whatever the base is in, and nothing of the base.
        assert first["sent"] == first["trained"] == sum(4 * g.numel() for g in one["fp32"]["gradients"])
        share = first["base_here"] / first["base"]
        assert 0.5 <= share < 0.51 if way.startswith("fsdp") else share == 1.0


def test_when_fsdp_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = make_accelerator("fp32", torch.device("cpu"))
    assert not wants_fsdp(FsdpOptions(), accelerator)
    with pytest.raises(ValueError, match="fsdp: expected several processes"):
        wants_fsdp(FsdpOptions(fsdp=True), accelerator)
    for given in ("compile", "optimize", "attention"):
        config = argparse.Namespace(fsdp=True, **{given: "xformers" if given == "attention" else True})
        with pytest.raises(ValueError, match=f"fsdp, {given}.*: both were given"):
            wants_fsdp(config, argparse.Namespace(num_processes=2))
    # As accelerate launch --use_fsdp sets it; accelerate's own way of sharding stays out of it.
    monkeypatch.setenv(FSDP_FLAG, "true")
    from accelerate.utils import DistributedType

    assert make_accelerator("fp32", torch.device("cpu")).distributed_type == DistributedType.NO
    with pytest.raises(ValueError, match=f"fsdp, which {FSDP_FLAG} .* asks for: expected several processes"):
        wants_fsdp(FsdpOptions(), accelerator)
