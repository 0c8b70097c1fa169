"""Time `lord_linear` on the attention projections of SD1.5 and SDXL. `python benchmarks/bench_ops.py --help`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from lordfast.profiling.cases import linear_cases, quick_cases
from lordfast.profiling.linear import LinearOptions, bench_linear
from lordfast.profiling.machine import device_key, find_device
from lordfast.profiling.quick import check_options
from lordfast.profiling.rounds import Effort
from lordfast.profiling.session import Job, default_dtypes, script, session

RESULTS = Path(__file__).parent / "results"


@dataclass(kw_only=True)
class Config:
    """A LoRD layer against the bare one, eager LoRD, torch.compile of it, and a PEFT LoRA of rank 2r."""

    out: Path | None = None
    """CSV file; by default benchmarks/results/DEVICE/ops.csv. An earlier results file is replaced."""
    device: str = "auto"
    """auto (CUDA where there is one, else CPU), cpu, cuda, cuda:N."""
    dtype: tuple[Literal["fp32", "bf16", "fp16"], ...] = ()
    """Dtypes of inputs and frozen weights; by default fp32 and bf16, on CUDA fp16 too."""
    models: tuple[Literal["sd15", "sdxl"], ...] = ("sd15", "sdxl")
    """Whose layers."""
    batch: int = 0
    """Images in a batch; 0 means 1 on a CPU and 4 on CUDA."""
    r: int = 4
    """LoRD's rank."""
    gate_hidden: tuple[int, ...] = (64,)
    """Widths of the gate's hidden layer; a new LoRD has 16 unless told otherwise."""
    gate_granularity: Literal["token", "sample"] = "token"
    """One lambda a token, or one a sample."""
    threads: int = 1
    """CPU threads."""
    compile: bool = True
    """Also time torch.compile of the eager formula."""
    seconds: float = 8.0
    """How long to time each case, at most about; checks and compilation come on top."""
    repeats: int = 40
    """Rounds of each case, at most."""
    quick: bool = False
    """About a minute: four layers of SD1.5, few repeats, no torch.compile."""
    seed: int = 0
    """Seeds the inputs."""


def main(config: Config) -> int:
    """Measure every case; the exit status, 1 where a variant's numbers were wrong."""
    for hidden in config.gate_hidden:
        check_options(config.r, hidden, config.seed)
    device = find_device(config.device)
    batch = config.batch or (4 if device.type == "cuda" else 1)
    effort = Effort(config.repeats, config.seconds)
    cases = linear_cases(config.models, batch)
    if config.quick:
        effort, cases = Effort(10, min(config.seconds, 2.0), least=3, draws=2), quick_cases(batch)
    dtypes = config.dtype or default_dtypes(device)
    out = config.out or RESULTS / device_key(device) / "ops.csv"
    with session(config.device, config.threads, out) as run:
        run.measure_ceilings(dtypes, seconds=0.5 if config.quick else 2.0)
        jobs: list[Job] = []
        for hidden in config.gate_hidden:
            options = LinearOptions(
                r=config.r,
                hidden=hidden,
                granularity=config.gate_granularity,
                compile=config.compile and not config.quick,
                seed=config.seed,
            )
            jobs += [
                (f"{case.name} {dtype} H={hidden}", partial(bench_linear, case, options, dtype, device, effort))
                for dtype in dtypes
                for case in cases
            ]
        run.run(jobs, "ops")
        return run.finish()


if __name__ == "__main__":
    script(main, Config)
