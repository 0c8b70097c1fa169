"""What bench_stage1.py and bench_attack.py share: models of the published sizes, and whole steps timed in turn."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lordfast.diffusion import LatentDiffusion, load_model
from lordfast.diffusion.random_model import random_model
from lordfast.diffusion.topologies import TOPOLOGIES
from lordfast.profiling.ceilings import Ceilings, measure_ceilings
from lordfast.profiling.count import count_flops, mfu
from lordfast.profiling.live import LiveBytes
from lordfast.profiling.machine import DTYPES, describe
from lordfast.profiling.resident import peak_bytes
from lordfast.profiling.results import MACHINE_COLUMNS, write_rows
from lordfast.profiling.rounds import Effort, time_in_turn

COLUMNS = (
    *MACHINE_COLUMNS,
    "step",  # what is timed: stage1, pgd
    "model",  # demo, or a topology with random weights
    "resolution",
    "dtype",
    "batch",  # images a step; stage1 sees each clean and perturbed
    "variant",
    "gate",  # ok, not checked, red: why, refused: why
    "error",
    "median_s",
    "p20_s",
    "p80_s",
    "repeats",
    "images_per_s",
    "ratio",  # median over that of the variant `against`, same run
    "against",
    "gflop",  # of one step of the variant, forward and backward, nothing recomputed
    "mfu",  # of one step of `against` over the median, as a share of peak_gflops
    "peak_gflops",  # of a square matrix product in this dtype, same run
    "peak_mib",  # of tensors above the model and what the variant keeps; on a CPU counted operation by operation
    "paper_minutes",  # projected: the paper's whole Stage 1 at these speeds
)

ModelName = Literal["demo", "sd15", "sd21", "sdxl", "sd15-narrow", "sd21-narrow", "sdxl-narrow"]


@dataclass(kw_only=True)
class WholeConfig:
    """What both scripts have."""

    out: Path | None = None
    """CSV file; by default in benchmarks/results/DEVICE, where it replaces an earlier one."""
    device: str = "auto"
    """auto (CUDA where there is one, else CPU), cpu, cuda, cuda:N."""
    model: tuple[ModelName, ...] = ()
    """demo, or a published architecture with random weights, at full or at toy width; by default sd15 and sdxl on CUDA,
    demo and sd15-narrow on a CPU."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the frozen weights; auto is bf16 on CUDA, fp32 on a CPU."""
    batch: int = 0
    """Images a step; 0 means 4, and 2 on a CPU."""
    compile: bool | None = None
    """Also what torch.compile makes of the blocks; by default on CUDA only, a CPU compiles for minutes."""
    threads: int = 1
    """CPU threads."""
    seconds: float = 60.0
    """How long to time each model, at most about."""
    quick: bool = False
    """The fewest repeats, the first model."""
    seed: int = 0
    """Seeds weights, images and noise."""

    def models(self, cuda: bool) -> tuple[str, ...]:
        """The models to time."""
        found = self.model or (("sd15", "sdxl") if cuda else ("demo", "sd15-narrow"))
        return found[:1] if self.quick else found

    def effort(self) -> Effort:
        """How long to time a model."""
        return Effort(3, 0, least=2) if self.quick else Effort(40, self.seconds, least=3)


@dataclass
class Variant:
    """One way to take a step.

    Attributes:
        run: takes a step.
        check: red or refused and why, or "ok" with an error, before anything is timed.
        within: open around every step, outside the clock.
        same_work: it does what the others do, however; what they take more FLOPs for earns no credit in the MFU.
    """

    name: str
    run: Callable[[], Any]
    check: Callable[[], tuple[str, float | None]] = lambda: ("not checked", None)
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    same_work: bool = True


def open_model(name: str, device: torch.device, dtype: str, seed: int) -> LatentDiffusion:
    """The embedded model, or one with random weights in a published architecture."""
    if name in TOPOLOGIES:
        return random_model(name, device=str(device), dtype=dtype, seed=seed)
    return load_model(name, device=str(device), dtype=dtype)


def sharing_copy(model: LatentDiffusion) -> LatentDiffusion:
    """A copy with modules of its own, to inject into, over the same frozen weights."""
    parts = (model.unet, model.vae, *model.text_encoders.values())
    shared = {id(t): t for part in parts for t in (*part.parameters(), *part.buffers())}
    return copy.deepcopy(model, shared)


def measure_steps(
    variants: Sequence[Variant],
    *,
    model: LatentDiffusion,
    images: int,
    against: str,
    ceilings: Ceilings,
    dtype: str,
    effort: Effort,
    seed: int,
) -> list[dict[str, Any]]:
    """Check, count, time in turn: a row a variant, without the machine's columns."""
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], float]] = {}
    for v in variants:
        try:
            with v.within():
                gate, error = v.check()
                rows[v.name] = {"variant": v.name, "gate": gate, "error": error}
                if not gate.startswith("red"):
                    v.run()  # optimizers make their states, compilers their code
                    rows[v.name]["peak_mib"] = _peak(v.run, model.device) / 2**20
                    count = count_flops(v.run, {"unet": model.unet, "vae": model.vae})
                    rows[v.name]["gflop"] = count.total / 1e9
                    calls[v.name] = _timed(v, model.device)
        except torch.OutOfMemoryError:
            rows[v.name] = {"variant": v.name, "gate": "refused: out of memory"}
    timings = time_in_turn(calls, effort, seed=seed)
    own = {v.name for v in variants if not v.same_work or against not in timings}
    for name, found in timings.items():
        row = rows[name]
        row |= {"median_s": found.median, "p20_s": found.p20, "p80_s": found.p80, "repeats": found.repeats}
        row |= {"images_per_s": images / found.median}
        work = rows[name if name in own else against]["gflop"]
        row["mfu"] = mfu(work * 1e9, found.median, ceilings, dtype)
        if name not in own:
            row |= {"ratio": found.median / timings[against].median, "against": against}
    return list(rows.values())


def _timed(v: Variant, device: torch.device) -> Callable[[], float]:
    def call() -> float:
        with v.within():
            _wait(device)
            started = time.perf_counter()
            v.run()
            _wait(device)
            return time.perf_counter() - started

    return call


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(run: Callable[[], Any], device: torch.device) -> int:
    gc.collect()
    if device.type == "cuda":
        return peak_bytes(run, device)
    with LiveBytes() as live:
        run()
    return live.peak


def run_models(
    config: WholeConfig,
    step: str,
    device: torch.device,
    out: Path,
    measure: Callable[[LatentDiffusion, str, int, Ceilings], list[dict[str, Any]]],
) -> int:
    """Measure each model, write the file after each, print tables; the exit status, 1 where numbers were wrong.

    Args:
        measure: (model, dtype, batch, ceilings) -> the rows of a model.
    """
    console = Console()
    dtype = config.dtype if config.dtype != "auto" else ("bf16" if device.type == "cuda" else "fp32")
    batch = config.batch or (4 if device.type == "cuda" else 2)
    ceilings = measure_ceilings(device, {dtype: DTYPES[dtype]}, seconds=0.2 if config.quick else 2.0)
    rows: list[dict[str, Any]] = []
    for name in config.models(device.type == "cuda"):
        model = open_model(name, device, dtype, config.seed)
        shared = {
            **describe(device),
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "step": step,
            "model": name,
            "resolution": model.resolution,
            "dtype": dtype,
            "batch": batch,
            "peak_gflops": ceilings.gflops[dtype],
        }
        found = measure(model, dtype, batch, ceilings)
        rows += [{**shared, **row} for row in found]
        write_rows(out, rows, COLUMNS)
        console.print(table(f"{step}, {name}, {model.resolution} px, {dtype}, {batch} images", found))
    console.print(f"Results: {out}", soft_wrap=True)
    return int(any(str(row["gate"]).startswith("red") for row in rows))


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """What was measured, a row each."""
    found = Table(title=title, title_justify="left")
    projected = any("paper_minutes" in row for row in rows)
    names = ("variant", "s a step", "images/s", "ratio", "GFLOP", "MFU", "peak MiB")
    names += ("the paper's Stage 1, min",) if projected else ()
    for name in names:
        found.add_column(name, justify="left" if name == "variant" else "right")
    for row in rows:
        values = [
            row.get(n) for n in ("median_s", "images_per_s", "ratio", "gflop", "mfu", "peak_mib", "paper_minutes")
        ]
        shown = ["" if value is None else f"{value:.3g}" for value in values[: len(names) - 1]]
        gate = "" if row["gate"] in ("ok", "not checked") else f" ({row['gate']})"
        found.add_row(escape(row["variant"] + gate), *shown)
    return found
