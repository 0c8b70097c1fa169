"""Time `pgd_step` against the bandwidth of an in-place add. `python benchmarks/bench_pgd.py --help`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lordfast.profiling.machine import device_key, find_device
from lordfast.profiling.pgd import NORMS, SHAPES, bench_pgd
from lordfast.profiling.results import Row
from lordfast.profiling.rounds import Effort
from lordfast.profiling.session import Job, script, session

RESULTS = Path(__file__).parent / "results"


@dataclass(kw_only=True)
class Config:
    """One step of PGD against the eager formula, an in-place add and a copy of the same arrays."""

    out: Path | None = None
    """CSV file; by default benchmarks/results/DEVICE/pgd.csv. An earlier results file is replaced."""
    device: str = "auto"
    """auto (CUDA where there is one, else CPU), cpu, cuda, cuda:N."""
    dtype: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("fp32", "bf16", "fp16")
    """Dtypes of the images."""
    threads: int = 1
    """CPU threads."""
    seconds: float = 4.0
    """How long to time each case, at most about."""
    repeats: int = 40
    """Rounds of each case, at most."""
    quick: bool = False
    """Some seconds: the smaller shape, few repeats."""
    seed: int = 0
    """Seeds the inputs."""


def main(config: Config) -> int:
    """Measure every case; the exit status, 1 where a variant's numbers were wrong."""
    device = find_device(config.device)
    effort, shapes = Effort(config.repeats, config.seconds, least=3, draws=2), SHAPES
    if config.quick:
        effort, shapes = Effort(10, min(config.seconds, 1.0), least=3, draws=2), SHAPES[:1]
    out = config.out or RESULTS / device_key(device) / "pgd.csv"
    with session(config.device, config.threads, out) as run:
        run.measure_ceilings((), seconds=0.5 if config.quick else 2.0)
        jobs: list[Job] = [
            (f"{norm} {shape} {dtype}", partial(bench_pgd, shape, norm, dtype, device, effort, config.seed))
            for dtype in config.dtype
            for shape in shapes
            for norm in NORMS
        ]
        run.run(jobs, "pgd")
        run.console.print(share_table(run.file.rows))
        return run.finish()


def share_table(rows: list[Row]) -> Table:
    """The GB/s of each variant over those of the in-place add in the same case."""
    names = [name for name in dict.fromkeys(row["variant"] for row in rows) if name not in ("inplace_add", "lordfast")]
    table = Table(
        title="Share of an in-place add's bandwidth",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    for name in ("", ""):
        table.add_column(name, no_wrap=True)
    for name in names:
        table.add_column(name.removeprefix("lordfast:"), justify="right", no_wrap=True)
    cases: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row["case"], row["dtype"]), {})[row["variant"]] = row
    for (case, dtype), by_name in cases.items():
        add = by_name["inplace_add"]["gbps"]
        shares = [by_name[name].get("gbps") for name in names]
        table.add_row(case, dtype, *("" if share is None else f"{100 * share / add:.0f} %" for share in shares))
    return table


if __name__ == "__main__":
    script(main, Config)
