"""Peak memory of attack, Stage 1 and Stage 2: estimates for a GPU, and estimates beside what a CPU really took.

`python benchmarks/memory.py --help`. Writes a CSV file and, from it, the tables of `docs/memory.md`.
"""

from __future__ import annotations

import csv
import multiprocessing
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lordfast.diffusion.configs import read_topology
from lordfast.files import write_atomic
from lordfast.profiling.machine import describe, device_key, threads
from lordfast.profiling.resident import peak_bytes
from lordfast.profiling.results import MACHINE_COLUMNS, write_rows
from lordfast.profiling.session import script
from lordfast.training.memory.estimate import TASKS, Estimator, Switches
from lordfast.training.memory.pieces import Adapters, Step, Task, denoiser_step, vae_step

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "memory.md"

COLUMNS = (
    *MACHINE_COLUMNS,
    "model",
    "resolution",
    "dtype",
    "task",
    "switches",
    "batch_size",
    "phase",  # the one with the peak
    "weights_gb",
    "adapters_gb",  # with AdamW's averages
    "moving_gb",  # activations, gradients and what passes, at most
    "peak_gb",  # all of it, estimated
    "measured_gb",  # of moving_gb, as resident memory of a process on this CPU; empty where it was not measured
    "ratio",  # moving_gb over measured_gb
)

GPU_MODELS = (("sd15", 512), ("sdxl", 1024))
LADDER: dict[str, dict[str, Any]] = {
    "plain": {},
    "low memory": {"low_memory": True},
    "checkpointing": {"gradient_checkpointing": True},
    "checkpointing, low memory": {"gradient_checkpointing": True, "low_memory": True},
    "... 8-bit": {"gradient_checkpointing": True, "quantize": "8bit"},
    "... 4-bit": {"gradient_checkpointing": True, "quantize": "4bit"},
    "... 4-bit, offload parts": {"gradient_checkpointing": True, "quantize": "4bit", "offload": "parts"},
    "... offload blocks": {"gradient_checkpointing": True, "offload": "blocks"},
}
MEASURED = ("plain", "checkpointing")
QUICK_SIDE = 64
"""Up to this many pixels all of `MEASURED` run; of larger models the first alone."""


@dataclass(kw_only=True)
class Config:
    """Estimate the peak memory of every task under every switch; measure some of them here as well."""

    out: Path | None = None
    """CSV file; by default benchmarks/results/DEVICE/memory.csv, which is replaced."""
    page: Path = PAGE
    """The page whose tables are replaced."""
    measure: tuple[str, ...] = ("demo", "sd15-narrow")
    """Models whose steps are also run on this CPU, in fp32 and at batch size 1; sd15 takes minutes and 8 GB."""
    estimate: bool = True
    """Estimate sd15 at 512 px and sdxl at 1024 px in bf16; without it only what is measured."""
    threads: int = 1
    """CPU threads."""


def main(config: Config) -> int:
    """Measure and estimate; the file is complete after every row."""
    console, device = Console(), torch.device("cpu")
    out = config.out or RESULTS / device_key(device) / "memory.csv"
    rows: list[dict[str, Any]] = []
    with threads(config.threads):
        machine = describe(device)

        def add(row: dict[str, Any]) -> None:
            now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            rows.append({**machine, "date": now, **row})
            write_rows(out, rows, COLUMNS)
            console.print(f"{row['model']} {row['task']} {row['switches']}: {1000 * row['moving_gb']:.0f} MB")

        for model in config.measure:
            for row in measured_rows(model, config.threads):
                add(row)
        for model, side in GPU_MODELS if config.estimate else ():
            estimator = Estimator(read_topology(model), side, extrapolate=True)
            for task in TASKS:
                for name, options in LADDER.items():
                    if task != "stage2" or "low memory" not in name:
                        add(estimated_row(estimator, task, name, Switches(dtype="bf16", **options)))
    write_page(config.page, out)
    console.print(f"Results: {out}\nTables: {config.page}", soft_wrap=True)
    return 0


def estimated_row(estimator: Estimator, task: Task, name: str, switches: Switches) -> dict[str, Any]:
    """A row of the estimate for a GPU."""
    found = estimator.estimate(task, switches)
    worst = found.worst
    return {
        "model": estimator.topology.name,
        "resolution": estimator.side,
        "dtype": switches.dtype,
        "task": task,
        "switches": name,
        "batch_size": switches.batch_size,
        "phase": worst.name,
        "weights_gb": worst.weights / 1e9,
        "adapters_gb": worst.adapters / 1e9,
        "moving_gb": worst.moving / 1e9,
        "peak_gb": found.peak / 1e9,
    }


def measured_rows(model: str, count: int) -> list[dict[str, Any]]:
    """Each piece of a model counted, and run in a process of its own, in fp32."""
    topology = read_topology(model)
    estimator = Estimator(topology, topology.resolution, cuda=False)
    found = []
    for name in MEASURED if topology.resolution <= QUICK_SIDE else MEASURED[:1]:
        switches = Switches(**LADDER[name])
        pieces: dict[str, int] = {task: estimator.piece(task, switches).peak for task in TASKS}
        pieces["vae"] = estimator.vae(1, switches, gradient=True).peak
        for piece, expected in pieces.items():
            # Spawned: what this process has in memory, and its allocator's pools, must not hide what the step takes.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                took = pool.apply(_run, (model, piece, switches.gradient_checkpointing, count))
            row = {"task": piece, "switches": name, "moving_gb": expected / 1e9, "measured_gb": took / 1e9}
            same = {"model": model, "resolution": topology.resolution, "dtype": "fp32", "batch_size": 1}
            found.append({**same, **row, "ratio": expected / took})
    return found


def _run(model: str, piece: str, checkpointing: bool, count: int) -> int:
    with threads(count):
        # Libraries load code and plan kernels in the first step; a small model does that as well.
        small, step = _step("sd15-narrow", piece, checkpointing), _step(model, piece, checkpointing)
        small.backward(small.forward())
        return peak_bytes(lambda: step.backward(step.forward()), torch.device("cpu"))


def _step(model: str, piece: Any, checkpointing: bool) -> Step:
    topology = read_topology(model)
    side = topology.resolution
    if piece == "vae":
        return vae_step(topology, side, 1, "fp32", gradient=True, checkpointing=checkpointing)
    return denoiser_step(topology, piece, side, 1, "fp32", Adapters(), checkpointing=checkpointing, cuda=False)


# ---- the page ----


def write_page(page: Path, results: Path) -> None:
    """Replace what stands between the page's marks by the tables of the results file."""
    with results.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    text = page.read_text(encoding="utf-8")
    for mark, table in (("estimates", estimates_table(rows)), ("measured", measured_table(rows))):
        begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
        if begin not in text or end not in text:
            raise ValueError(f"page: {page} has no marks {begin} and {end}")
        head, rest = text.split(begin, 1)
        text = f"{head}{begin}\n\n{table}\n\n{end}{rest.split(end, 1)[1]}"
    write_atomic(page, text.encode())


def estimates_table(rows: list[dict[str, str]]) -> str:
    """Peaks by switches, a column a task and model."""
    found = {(row["model"], row["task"], row["switches"]): row for row in rows if row["peak_gb"]}
    columns = [(model, task) for model, _ in GPU_MODELS for task in TASKS]
    lines = [
        "| estimated peak, GB | " + " | ".join(f"{model} {task}" for model, task in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name in LADDER:
        cells = []
        for model, task in columns:
            # Stage 2 has no image gradient to take in two passes.
            row = found.get((model, task, name))
            cells.append("" if row is None else f"{float(row['peak_gb']):.1f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measured_table(rows: list[dict[str, str]]) -> str:
    """Counted and measured, a line each."""
    lines = ["| model | step | switches | estimated, MB | measured, MB | ratio |", "|---|---|---|---:|---:|---:|"]
    for row in rows:
        if row["measured_gb"]:
            amounts = " | ".join(f"{1000 * float(row[name]):.0f}" for name in ("moving_gb", "measured_gb"))
            step = f"{row['model']} {row['resolution']} px | {row['task']} | {row['switches']}"
            lines.append(f"| {step} | {amounts} | {float(row['ratio']):.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    script(main, Config)
