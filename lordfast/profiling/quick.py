"""What `lordfast bench` runs: a few layers of Stable Diffusion 1.5, in about a minute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .cases import quick_cases
from .linear import LinearOptions, bench_linear
from .results import Row
from .rounds import Effort
from .session import Job, session


@dataclass(kw_only=True)
class BenchConfig:
    """How fast a LoRD layer is here, against the bare layer, the eager formula and a LoRA of rank 2r.

    Times attention projections of Stable Diffusion 1.5, forward and forward + backward, in about a minute. Every
    variant's numbers are first compared with float64; what is wrong is not timed, and the exit status is 1. Inputs
    rotate, so that they come from memory as in a real network. The full suite is in the checkout's benchmarks/ folder.
    """

    out: Path | None = None
    """Write the measurements to this CSV file; an earlier one of lordfast's benchmarks is replaced."""
    seed: int = 0
    """Seeds the inputs."""
    device: str = "auto"
    """auto (CUDA where there is one, else CPU), cpu, cuda, cuda:N."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of inputs and frozen weights: fp32, bf16 or fp16. LoRD's own parameters are always fp32."""
    threads: int = 1
    """CPU threads."""
    batch: int = 0
    """Images in a batch; 0 means 1 on a CPU and 4 on CUDA."""
    r: int = 4
    """LoRD's rank."""
    gate_hidden: int = 64
    """Width of the gate's hidden layer (a new LoRD has 16 unless told otherwise)."""
    gate_granularity: Literal["token", "sample"] = "token"
    """One lambda a token, or one a sample."""
    compile: bool = False
    """Also time torch.compile of the eager formula; compiling takes longer than everything else."""
    seconds: float = 6.0
    """How long to measure each layer, at most about."""


def run_bench(config: BenchConfig, console: Console | None = None) -> int:
    """Measure, print and write; the exit status, 1 where numbers were wrong.

    Raises:
        ValueError: an option is out of range, or `out` holds something else than results.
    """
    check_options(config.r, config.gate_hidden, config.seed)
    if not 0 < config.seconds < float("inf"):
        raise ValueError(f"seconds is {config.seconds}; expected a positive number")
    effort = Effort(repeats=30, seconds=config.seconds, least=3, draws=2)
    options = LinearOptions(
        r=config.r,
        hidden=config.gate_hidden,
        granularity=config.gate_granularity,
        compile=config.compile,
        seed=config.seed,
    )
    with session(config.device, config.threads, config.out, console) as run:
        cases = quick_cases(config.batch or (4 if run.device.type == "cuda" else 1))
        jobs: list[Job] = [
            (case.name, partial(bench_linear, case, options, config.dtype, run.device, effort)) for case in cases
        ]
        run.run(jobs, "bench", tables=False)
        run.console.print(summary_table(run.file.rows))
        return run.finish()


def check_options(r: int, hidden: int, seed: int) -> None:
    """Raise a ValueError that names an option which no layer can have."""
    for name, value, least in (("r", r, 1), ("gate_hidden", hidden, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}")


def summary_table(rows: Sequence[Row]) -> Table:
    """A row for each layer and direction: the bare layer's time, and the others as multiples of it."""
    names = {"eager": "eager", "eager_compiled": "compiled", "peft_lora_2r": "LoRA 2r", "lordfast": "lordfast"}
    if not any(row["variant"] == "eager_compiled" for row in rows):
        del names["eager_compiled"]
    table = Table(
        title="A layer with LoRD, in multiples of the bare layer's time (Stable Diffusion 1.5)",
        caption="Text layers: x wants no gradient, so the bare layer has no backward pass.",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    table.add_column("layer", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name in ("bare us", *names.values()):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ran on", no_wrap=True)
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["direction"]), {})[row["variant"]] = row
    for (case, direction), by_name in groups.items():
        ratios = [_ratio(by_name[name]) for name in names]
        bare = by_name["bare_linear"]["median_us"]
        short = direction.replace("forward", "fwd").replace("backward", "bwd")
        table.add_row(case.removeprefix("sd15 "), short, f"{bare:.0f}", *ratios, by_name["lordfast"]["backend"])
    return table


def _ratio(row: Row) -> str:
    """Why it was not timed, where it was not: red or refused."""
    return f"{row['ratio_bare']:.2f}" if row.get("ratio_bare") is not None else str(row["gate"]).partition(":")[0]
