"""Time a whole UNet with LoRD. `python benchmarks/bench_unet.py --help`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from lordfast.diffusion.compiled import compile_blocks
from lordfast.diffusion.fusion import optimize
from lordfast.diffusion.topologies import build_denoiser, find_topology
from lordfast.profiling.machine import device_key, find_device
from lordfast.profiling.quick import check_options
from lordfast.profiling.results import Row
from lordfast.profiling.rounds import Effort
from lordfast.profiling.session import Job, script, session
from lordfast.profiling.unet import Prepare, UnetOptions, bench_unet

RESULTS = Path(__file__).parent / "results"


@dataclass(kw_only=True)
class Config:
    """Forward and training step of a random UNet: plain, with a LoRA of rank 2r, with LoRD eager, fused, optimised (its
    attention's projections computed together) and compiled."""

    out: Path | None = None
    """CSV file; by default benchmarks/results/DEVICE/unet.csv. An earlier results file is replaced."""
    device: str = "auto"
    """auto (CUDA where there is one, else CPU), cpu, cuda, cuda:N."""
    dtype: tuple[Literal["fp32", "bf16", "fp16"], ...] = ()
    """Dtypes of inputs and frozen weights; by default fp32 and bf16, on CUDA bf16."""
    topology: tuple[Literal["sd15", "sdxl", "sd21", "sd15-narrow", "sdxl-narrow", "sd21-narrow"], ...] = ()
    """Which UNets. narrow has all layers at toy width, on latents of 8 x 8: it fits in a CPU's caches, so it measures
    what a call costs more than what a byte does. By default sd15 and sdxl, on a CPU the narrow ones."""
    compile: bool | None = None
    """Also what torch.compile makes of the blocks; by default on CUDA only, a CPU compiles for minutes."""
    batch: int = 0
    """Latents in a batch; 0 means 2 on a CPU and 4 on CUDA."""
    side: int | None = None
    """Side of the latents, a multiple of 8; by default the topology's."""
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


def forms(compiled: bool) -> dict[str, Prepare]:
    """What is done to a UNet with LoRD, by the variant's name."""
    found: dict[str, Prepare] = {"lordfast+optimize": optimize}
    if compiled:
        found["lordfast+optimize, compiled"] = lambda unet: compile_blocks(optimize(unet))
    return found


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
    topologies = config.topology or (("sd15", "sdxl") if cuda else ("sd15-narrow", "sdxl-narrow"))
    options = UnetOptions(
        batch=config.batch or (4 if cuda else 2),
        side=config.side,
        r=config.r,
        hidden=config.gate_hidden,
        granularity=config.gate_granularity,
        seed=config.seed,
    )
    out = config.out or RESULTS / device_key(device) / "unet.csv"
    with session(config.device, config.threads, out) as run:
        prepare = forms(cuda if config.compile is None else config.compile)

        def job(name: str, dtype: str) -> list[Row]:
            unet = build_denoiser(find_topology(name), seed=config.seed, device=device)
            return bench_unet(unet, name, options, dtype, effort, prepare)

        jobs: list[Job] = [(f"{name} {dtype}", partial(job, name, dtype)) for name in topologies for dtype in dtypes]
        run.run(jobs, "unet")
        return run.finish()


if __name__ == "__main__":
    script(main, Config)
