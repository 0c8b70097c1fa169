"""Time a whole UNet of SD1.5's topology with LoRD. `python benchmarks/bench_unet.py --help`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from lordfast.profiling.machine import device_key, find_device
from lordfast.profiling.quick import check_options
from lordfast.profiling.rounds import Effort
from lordfast.profiling.session import Job, script, session
from lordfast.profiling.unet import UnetOptions, bench_unet

RESULTS = Path(__file__).parent / "results"


@dataclass(kw_only=True)
class Config:
    """Forward and training step of a random UNet: plain, with a LoRA of rank 2r, with LoRD eager and fused."""

    out: Path | None = None
    """CSV file; by default benchmarks/results/DEVICE/unet.csv. An earlier results file is replaced."""
    device: str = "auto"
    """auto (CUDA where there is one, else CPU), cpu, cuda, cuda:N."""
    dtype: tuple[Literal["fp32", "bf16", "fp16"], ...] = ()
    """Dtypes of inputs and frozen weights; by default fp32 and bf16, on CUDA bf16."""
    width: Literal["auto", "small", "full"] = "auto"
    """small: widths 32 to 64, latents of 8 x 8; full: SD1.5's widths, 64 x 64. auto is full on CUDA, small on a CPU."""
    batch: int = 0
    """Latents in a batch; 0 means 2 on a CPU and 4 on CUDA."""
    side: int | None = None
    """Side of the latents, a multiple of 8; by default the width's."""
    r: int = 4
    """LoRD's rank."""
    gate_hidden: int = 64
    """Width of the gate's hidden layer."""
    gate_granularity: Literal["token", "sample"] = "token"
    """One lambda a token, or one a sample."""
    threads: int = 1
    """CPU threads."""
    seconds: float = 30.0
    """How long to time each dtype, at most about."""
    repeats: int = 40
    """Rounds, at most."""
    quick: bool = False
    """Some seconds: few repeats, the first dtype."""
    seed: int = 0
    """Seeds weights and inputs."""


def main(config: Config) -> int:
    """Measure; the exit status, 1 where a variant's numbers were wrong."""
    check_options(config.r, config.gate_hidden, config.seed)
    if config.side is not None and (config.side < 8 or config.side % 8):
        raise ValueError(f"side is {config.side}; expected a multiple of 8")
    device = find_device(config.device)
    cuda = device.type == "cuda"
    dtypes = config.dtype or (("bf16",) if cuda else ("fp32", "bf16"))
    effort = Effort(config.repeats, config.seconds, draws=2)
    if config.quick:
        effort, dtypes = Effort(10, min(config.seconds, 8.0), least=3, draws=2), dtypes[:1]
    options = UnetOptions(
        width=config.width if config.width != "auto" else ("full" if cuda else "small"),
        batch=config.batch or (4 if cuda else 2),
        side=config.side,
        r=config.r,
        hidden=config.gate_hidden,
        granularity=config.gate_granularity,
        seed=config.seed,
    )
    out = config.out or RESULTS / device_key(device) / "unet.csv"
    with session(config.device, config.threads, out) as run:
        jobs: list[Job] = [(f"unet {dtype}", partial(bench_unet, options, dtype, device, effort)) for dtype in dtypes]
        run.run(jobs, "unet")
        return run.finish()


if __name__ == "__main__":
    script(main, Config)
