"""Which settings fit into a memory: the least painful that do, batch size by batch size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lordfast.diffusion.topologies import Topology
from lordfast.training.memory.estimate import Estimate, Estimator, Switches
from lordfast.training.memory.model import side_multiple
from lordfast.training.memory.pieces import Task

RESERVED = 0.05
"""Share of the memory that is left for what torch does not count: CUDA's context, gaps, kernels' workspaces."""

WANTED: dict[Task, int] = {"attack": 8, "stage1": 4, "stage2": 4}
"""The commands' own batch sizes."""
ATTACK_BATCH = 8
"""Stage 1's own --attack-batch-size."""

_LADDERS: dict[Task, tuple[dict[str, Any], ...]] = {
    "attack": (
        {},
        {"offload": "parts"},
        {"low_memory": True},
        # Where the VAE is checkpointed, its backward pass is the peak, and two passes are no better than one.
        {"low_memory": False, "gradient_checkpointing": True},
        {"quantize": "8bit"},
        {"quantize": "4bit"},
        {"quantize": "none", "offload": "blocks"},
    )
}
_LADDERS["stage1"] = _LADDERS["attack"]
# No image gradient in Stage 2, so no two passes to take it in.
_LADDERS["stage2"] = tuple(
    {name: value for name, value in rung.items() if name != "low_memory"}
    for rung in _LADDERS["attack"]
    if rung != {"low_memory": True}
)


@dataclass(frozen=True)
class Fit:
    """Settings that fit, and what they take."""

    switches: Switches
    estimate: Estimate

    def flags(self) -> list[str]:
        """As words of the task's command line; a smaller batch is made up for by accumulation."""
        chosen, task = self.switches, self.estimate.task
        words = ["--dtype", chosen.dtype, "--batch-size", str(chosen.batch_size)]
        if task != "attack" and chosen.batch_size < WANTED[task]:
            words += ["--accumulate", str(WANTED[task] // chosen.batch_size)]
        if task == "stage1" and chosen.attack_batch_size != ATTACK_BATCH:
            words += ["--attack-batch-size", str(chosen.attack_batch_size)]
        words += ["--gradient-checkpointing"] if chosen.gradient_checkpointing else []
        words += ["--low-memory"] if chosen.low_memory else []
        words += ["--quantize", chosen.quantize] if chosen.quantize != "none" else []
        return words + (["--offload", chosen.offload] if chosen.offload != "none" else [])


def rungs(task: Task, dtype: str) -> Iterator[Switches]:
    """The switches of `task`, from the least painful on.

    Parts that are not in use can leave at next to no cost; the two-pass gradient and checkpointing cost time and change
    nothing else; quantised weights change the result; blocks that travel cost the most time.
    """
    now = Switches(dtype=dtype)  # type: ignore[arg-type]
    for step in _LADDERS[task]:
        now = dataclasses.replace(now, **step)
        yield now


def find_fits(estimator: Estimator, task: Task, memory: int, dtype: str) -> list[Fit]:
    """Settings of `task` that fit into `memory` bytes less `RESERVED`, the least painful first.

    Each further one allows a larger batch than those before it, up to the command's own batch size. Weights that are
    quantised or travel are resorted to only where nothing fits without.
    """
    limit, best = int(memory * (1 - RESERVED)), 0
    found: list[Fit] = []
    for switches in rungs(task, dtype):
        if found and (switches.quantize != "none" or switches.offload == "blocks"):
            # Not for a larger batch alone, which costs nothing to go without.
            break
        fit = _largest(estimator, task, switches, limit)
        if fit is not None and fit.switches.batch_size > best:
            best = fit.switches.batch_size
            found.append(fit)
        if best == WANTED[task]:
            break
    return found


def least_needed(estimator: Estimator, task: Task, dtype: str) -> int:
    """The memory, in bytes, below which nothing helps."""
    peaks = [estimator.estimate(task, switches).peak for switches in rungs(task, dtype)]
    return int(min(peaks) / (1 - RESERVED)) + 1


def _largest(estimator: Estimator, task: Task, switches: Switches, limit: int) -> Fit | None:
    """The largest batches, up to the wanted ones, at which `switches` fit."""
    if estimator.estimate(task, switches).peak > limit:
        return None
    if task == "stage1":
        # Perturbing and training follow one another: each has a batch of its own.
        switches = _grown(estimator, task, switches, "attack_batch_size", ATTACK_BATCH, limit)
    switches = _grown(estimator, task, switches, "batch_size", WANTED[task], limit)
    return Fit(switches, estimator.estimate(task, switches))


def _grown(estimator: Estimator, task: Task, switches: Switches, name: str, most: int, limit: int) -> Switches:
    # Divisors, so that accumulation makes up for the rest exactly.
    sizes = [size for size in range(most, 1, -1) if most % size == 0]
    tried = (dataclasses.replace(switches, **{name: size}) for size in sizes)  # type: ignore[arg-type]
    return next((larger for larger in tried if estimator.estimate(task, larger).peak <= limit), switches)


def check_side(topology: Topology, resolution: int | None) -> int:
    """The side in pixels to estimate at: `resolution`, or the model's own.

    Raises:
        ValueError: images of this size don't go through the model.
    """
    side, multiple = resolution or topology.resolution, side_multiple(topology)
    if side <= 0 or side % multiple or resolution == 0:
        raise ValueError(
            f"resolution: expected a positive multiple of {multiple} for {topology.name}, got {resolution}"
        )
    return side
