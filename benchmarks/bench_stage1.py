"""Time whole training steps of Stage 1 against a plain LoRA's. `python benchmarks/bench_stage1.py --help`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from whole_steps import Variant, WholeConfig, measure_steps, run_models, sharing_copy

from lordfast.adapter import LordConfig
from lordfast.attacks.budget import Budget
from lordfast.attacks.engine import PgdSettings, perturb
from lordfast.attacks.pgd import LdmLoss
from lordfast.data import make_faces
from lordfast.defense.objective import DefenseObjective
from lordfast.diffusion import LatentDiffusion
from lordfast.diffusion.compiled import compile_blocks
from lordfast.diffusion.fusion import optimize
from lordfast.profiling.accuracy import judge, relative_errors
from lordfast.profiling.baselines import eager_lord
from lordfast.profiling.ceilings import Ceilings
from lordfast.profiling.machine import device_key, find_device, threads
from lordfast.profiling.session import script
from lordfast.profiling.unet import lord_gradients, shrink
from lordfast.training.loop import Objective
from lordfast.training.lora import TARGETS, LoraObjective, add_lora

RESULTS = Path(__file__).parent / "results"
PAPER_IMAGES, PAPER_EPOCHS, PAPER_PGD_STEPS = 1000, 100, 2
PERTURBING = f"perturbing them, {PAPER_PGD_STEPS} PGD steps"

Prepare = Callable[[LatentDiffusion], Any]


@dataclass(kw_only=True)
class Config(WholeConfig):
    """A training step on clean and perturbed latents: plain diffusers with a PEFT LoRA of rank 2r, LoRD eager, fused,
    optimised and compiled; and a projection of the paper's whole Stage 1."""

    r: int = 4
    """LoRD's rank."""
    gate_hidden: int = 16
    """Width of its gate."""


class Step:
    """A training step: forward, backward, clipping, AdamW."""

    def __init__(self, objective: Objective, batch: dict[str, Any]) -> None:
        self.objective, self._batch = objective, batch
        self._trainable = [p for p in objective.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trainable, lr=1e-6, fused=True)

    def backward(self) -> Tensor:
        """The loss; gradients are in the parameters."""
        self._optimizer.zero_grad()
        loss = self.objective(**self._batch)["loss"]
        loss.backward()
        return loss

    def __call__(self) -> None:
        self.backward()
        nn.utils.clip_grad_norm_(self._trainable, 1.0)
        self._optimizer.step()

    def gradients(self) -> dict[str, Tensor]:
        """The loss and LoRD's gradients, named "kind/layer"."""
        loss = self.backward().detach().clone()
        return {"loss": loss, **lord_gradients(self.objective.unet, "lord")}


def random_batch(model: LatentDiffusion, batch: int, seed: int) -> dict[str, Any]:
    """Latents, noise, timesteps and a text, on the device."""
    g = torch.Generator().manual_seed(seed)
    shape = model.latent_shape(model.resolution, model.resolution)
    clean, change, noise = (torch.randn(batch, *shape, generator=g).to(model.device) for _ in range(3))
    return {
        "clean": clean,
        "perturbed": clean + 0.1 * change,
        "noise": noise,
        "timesteps": torch.randint(model.timesteps, (batch,), generator=g).to(model.device),
        "text": model.embed([f"a photo of person {i}" for i in range(batch)]),
    }


def with_lord(model: LatentDiffusion, config: Config, prepare: Prepare) -> LatentDiffusion:
    """A copy with a random LoRD, made small: at full size it makes a random UNet chaotic."""
    own = sharing_copy(model)
    torch.manual_seed(config.seed)
    lord = LordConfig(r=config.r, lord_alpha=8 * config.r, gate_hidden=config.gate_hidden, init_weights=False)
    own.unet.add_adapter(lord, adapter_name="lord")
    shrink(own.unet, "lord")
    prepare(own)
    return own


def with_lora(model: LatentDiffusion, config: Config, prepare: Prepare) -> LatentDiffusion:
    """A copy with a PEFT LoRA of rank 2r, as many parameters as LoRD's branches have."""
    own = sharing_copy(model)
    add_lora(own, rank=2 * config.r, alpha=2 * config.r, target_modules=TARGETS, seed=config.seed)
    prepare(own)
    return own


def variants(model: LatentDiffusion, batch: dict[str, Any], config: Config, compiled: bool) -> list[Variant]:
    """All ways to take the step."""
    twice = {name: torch.cat([batch[name]] * 2) for name in ("noise", "timesteps")}
    both = {
        **twice,
        "latents": torch.cat([batch["clean"], batch["perturbed"]]),
        "text": {name: torch.cat([value, value]) for name, value in batch["text"].items()},
    }

    def nothing(own: LatentDiffusion) -> None:
        pass

    def fused(own: LatentDiffusion) -> None:
        optimize(own.unet)

    def blocks(own: LatentDiffusion) -> None:
        compile_blocks(own.unet)

    def fused_blocks(own: LatentDiffusion) -> None:
        optimize(own.unet)
        compile_blocks(own.unet)

    exact = _exact(model, batch, config)
    limits: dict[str, float] = {}

    def lora(name: str, prepare: Prepare) -> Variant:
        return Variant(name, Step(LoraObjective(with_lora(model, config, prepare)), both))

    def lord(name: str, prepare: Prepare, within: Any = nullcontext) -> Variant:
        step = Step(DefenseObjective(with_lord(model, config, prepare), lambda_adv=2.0, lambda_det=0.1), batch)

        def check() -> tuple[str, float | None]:
            errors = relative_errors([step.gradients()], [exact])
            # Eager, the first that is checked, sets the limits.
            limits.update(limits or errors)
            verdict = judge(errors, limits)
            return verdict.gate, verdict.error

        return Variant(name, step, check, within)

    found = [
        lora("plain LoRA", nothing),
        lord("LoRD eager", nothing, eager_lord),
        lord("lordfast", nothing),
        lord("lordfast+optimize", fused),
    ]
    if compiled:
        found += [lora("plain LoRA, compiled", blocks), lord("lordfast+optimize, compiled", fused_blocks)]
    return found


def _exact(model: LatentDiffusion, batch: dict[str, Any], config: Config) -> dict[str, Tensor]:
    """Loss and gradients of the eager formula in float64."""
    own = with_lord(model, config, lambda _: None)
    wide = copy.copy(own)
    wide.unet = copy.deepcopy(own.unet).double()
    wide.dtype = torch.float64
    # In float64 attention keeps its whole matrices for the backward pass.
    wide.unet.enable_gradient_checkpointing()
    with eager_lord():
        found = Step(DefenseObjective(wide, lambda_adv=2.0, lambda_det=0.1), batch).gradients()
    return {name: value.double() for name, value in found.items()}


def perturbation(model: LatentDiffusion, batch: int, seed: int) -> Variant:
    """The paper's perturbation of a batch: two steps of PGD."""
    images = [face.image for face in make_faces(batch, seed=seed, size=model.resolution)]
    text = model.embed([""] * batch)
    settings = PgdSettings(Budget(0.025, 0.0025), steps=PAPER_PGD_STEPS, random_start=False, seed=seed)
    return Variant(PERTURBING, lambda: perturb(model, images, text, LdmLoss(), settings), same_work=False)


def project(rows: list[dict[str, Any]], batch: int) -> None:
    """Add what the paper's whole Stage 1 would take at these speeds: perturbing once, all epochs; encoding aside."""
    once = next(row for row in rows if row["variant"] == PERTURBING)
    for row in rows:
        if row is not once and "median_s" in row and "median_s" in once:
            epochs = PAPER_EPOCHS * PAPER_IMAGES / batch * row["median_s"]
            row["paper_minutes"] = (epochs + PAPER_IMAGES / batch * once["median_s"]) / 60


def main(config: Config) -> int:
    """Measure; the exit status, 1 where a variant's numbers were wrong."""
    device = find_device(config.device)
    out = config.out or RESULTS / device_key(device) / "stage1.csv"
    compiled = device.type == "cuda" if config.compile is None else config.compile

    def measure(model: LatentDiffusion, dtype: str, batch: int, ceilings: Ceilings) -> list[dict[str, Any]]:
        inputs = random_batch(model, batch, config.seed)
        rows = measure_steps(
            [*variants(model, inputs, config, compiled), perturbation(model, batch, config.seed)],
            model=model,
            images=batch,
            against="plain LoRA",
            ceilings=ceilings,
            dtype=dtype,
            effort=config.effort(),
            seed=config.seed,
        )
        project(rows, batch)
        return rows

    with threads(config.threads):
        return run_models(config, "stage1", device, out, measure)


if __name__ == "__main__":
    script(main, Config)
