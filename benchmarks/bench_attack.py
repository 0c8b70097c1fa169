"""Time attacks batched against one by one, and measure their memory. `python benchmarks/bench_attack.py --help`."""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
from attack_steps import bench_steps
from rich.console import Console
from rich.table import Table
from whole_steps import ModelName, WholeConfig

from lordfast.attacks.folder import Job, attack_images
from lordfast.attacks.protocol import Perturb
from lordfast.attacks.registry import ATTACKS
from lordfast.attacks.subject import attack_subject
from lordfast.attacks.surrogate import FineTuned
from lordfast.data import ImageRecord, make_faces
from lordfast.diffusion import LatentDiffusion, TensorCache, load_model
from lordfast.profiling.machine import describe, device_key, find_device, threads
from lordfast.profiling.resident import peak_bytes
from lordfast.profiling.results import MACHINE_COLUMNS, write_rows
from lordfast.profiling.rounds import Effort, Timing, time_in_turn
from lordfast.profiling.session import script

RESULTS = Path(__file__).parent / "results"
NAMES = ("pgd", "ace")

COLUMNS = (
    *MACHINE_COLUMNS,
    "attack",
    "model",
    "resolution",
    "dtype",
    "images",
    "image_steps",  # of each image
    "train_steps",  # of the surrogate
    "draws",
    "batch_size",
    "low_memory",
    "median_s",
    "p20_s",
    "p80_s",
    "repeats",
    "image_steps_per_s",  # images x image steps over the median
    "ratio_one_by_one",  # image_steps_per_s over that of batch size 1, same run
    "peak_mib",  # of the process above what it held with the model loaded: resident memory, or torch's on CUDA
    "ratio_low_memory",  # peak_mib over that with low_memory, same batch size
)


@dataclass(kw_only=True)
class Config:
    """PGD and ACE on a folder of images: batched against one by one, and memory with and without --low-memory. Then
    single steps of PGD, against a plain one around diffusers, on the sizes of published models."""

    out: Path | None = None
    """CSV file; by default benchmarks/results/DEVICE/attack.csv, which is replaced. The single steps go beside it, into
    attack_steps.csv."""
    device: str = "auto"
    """auto (CUDA where there is one, else CPU), cpu, cuda, cuda:N."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the frozen weights."""
    model: str = "demo"
    """A diffusers folder, a hub id, or demo."""
    resolution: int | None = None
    """Side of the images; the model's own when left out."""
    images: int = 16
    """Images, all of them in one batch against one by one."""
    draws: int = 4
    """Noise draws a step while memory is measured; --low-memory takes one at a time."""
    threads: int = 1
    """CPU threads."""
    seconds: float = 120.0
    """How long to time each attack, at most about; single steps half as long."""
    topology: tuple[ModelName, ...] = ()
    """Models of the single steps, random weights in a published architecture among them; by default sd15 and sdxl on
    CUDA, demo and sd15-narrow on a CPU."""
    compile: bool | None = None
    """Single steps also compiled; by default on CUDA only, a CPU compiles for minutes."""
    quick: bool = False
    """Four images and the fewest repeats."""
    seed: int = 0
    """Seeds images and noise."""


@dataclass(frozen=True)
class Case:
    """One way to run an attack."""

    attack: str
    batch_size: int
    draws: int
    low_memory: bool

    def options(self, config: Config, out: Path) -> Any:
        """A short run of the attack: enough steps that starting costs nothing against them."""
        fields: dict[str, Any] = (
            {"attack_steps": 4} if self.attack == "pgd" else {"attack_steps": 2, "rounds": 2, "train_steps": 1}
        )
        return ATTACKS[self.attack].config(
            model=config.model,
            images=Path("."),
            out=out,
            seed=config.seed,
            device=config.device,
            dtype=config.dtype,
            batch_size=self.batch_size,
            draws=self.draws,
            low_memory=self.low_memory,
            **fields,
        )


def prepare(case: Case, config: Config, model: LatentDiffusion, scratch: Path) -> Callable[[], None]:
    """What runs the attack once, over images that are drawn and a model that is loaded before."""
    side = model.check_resolution(config.resolution)
    faces = make_faces(config.images, seed=config.seed, size=side)
    jobs = [
        Job.of(ImageRecord(Path(f"{i}.png"), f"{i}.png", face.caption), f"{i}.png", face.image)
        for i, face in enumerate(faces)
    ]
    options = case.options(config, scratch)
    attack = ATTACKS[case.attack]
    loss, settings, cache = attack.loss(options, model), options.settings(config.seed), TensorCache(scratch / "cache")
    if attack.schedule is None:

        def run() -> None:
            folder = Path(tempfile.mkdtemp(dir=scratch))
            attack_images(model, jobs, loss, settings, folder, batch_size=case.batch_size, cache=cache, show=False)
            shutil.rmtree(folder)

        return run
    phases = attack.schedule(options)
    captions = [caption for job in jobs for caption in job.captions]
    surrogate = FineTuned(model, options, options, captions, cache)
    start = surrogate.state()

    def run_with_surrogate() -> None:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        surrogate.restore(start)
        size = case.batch_size
        attack_subject(
            model, jobs, loss, phases, settings, surrogate, folder, batch_size=size, resume=False, show=False
        )
        shutil.rmtree(folder)

    return run_with_surrogate


def image_steps(case: Case, config: Config) -> int:
    """Of each image in one run."""
    options = case.options(config, Path("."))
    schedule = ATTACKS[case.attack].schedule
    if schedule is None:
        return int(options.attack_steps)
    return sum(phase.steps for phase in schedule(options) if isinstance(phase, Perturb))


def throughput(name: str, config: Config, scratch: Path) -> dict[Case, Timing]:
    """Seconds of a run, all images at once and one by one, in turn."""
    cases = [Case(name, size, 1, False) for size in (config.images, 1)]
    device = find_device(config.device)
    calls = {}
    for case in cases:
        run = prepare(case, config, load_model(config.model, device=str(device), dtype=config.dtype), scratch)
        calls[case] = lambda run=run: _timed(run, device)
    effort = Effort(3, 0, least=1) if config.quick else Effort(30, config.seconds, least=3)
    return time_in_turn(calls, effort, seed=config.seed)


def _timed(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def peak_mib(case: Case, config: Config, scratch: Path) -> float:
    """What a run needs at most above the loaded model, measured in a process of its own."""
    # Spawned: what this process has in memory, and its allocator's pools, must not hide what the run takes.
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (case, config, scratch))


def _peak(case: Case, config: Config, scratch: Path) -> float:
    device = find_device(config.device)
    with threads(config.threads):
        # Libraries load code and plan kernels in the first step; one image does that as well.
        small = Case(case.attack, 1, 1, case.low_memory)
        one = Config(**{**vars(config), "images": 1})
        prepare(small, one, load_model(config.model, device=str(device), dtype=config.dtype), scratch)()
        run = prepare(case, config, load_model(config.model, device=str(device), dtype=config.dtype), scratch)
        return peak_bytes(run, device) / 2**20


def main(config: Config) -> int:
    """Measure, write the file after each attack, print a table."""
    if config.quick:
        config.images = 4
    console = Console()
    device = find_device(config.device)
    out = config.out or RESULTS / device_key(device) / "attack.csv"
    rows: list[dict[str, Any]] = []
    with threads(config.threads), tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        columns = {**describe(device), "model": config.model, "dtype": config.dtype, "images": config.images}
        columns["resolution"] = load_model(config.model).check_resolution(config.resolution)
        for attack in NAMES:
            console.print(f"{attack}: throughput")
            timings = throughput(attack, config, scratch)
            speeds = {case: config.images * image_steps(case, config) / found.median for case, found in timings.items()}
            single = next(speed for case, speed in speeds.items() if case.batch_size == 1)
            for case, found in timings.items():
                row = {"median_s": found.median, "p20_s": found.p20, "p80_s": found.p80, "repeats": found.repeats}
                row |= {"image_steps_per_s": speeds[case], "ratio_one_by_one": speeds[case] / single}
                rows.append({**columns, **_columns(case, config), **row})
            console.print(f"{attack}: memory")
            cases = [Case(attack, config.images, config.draws, low) for low in (False, True)]
            peaks = {case: peak_mib(case, config, scratch) for case in cases}
            for case, peak in peaks.items():
                row = {"peak_mib": peak, "ratio_low_memory": peak / peaks[cases[1]]}
                rows.append({**columns, **_columns(case, config), **row})
            write_rows(out, rows, COLUMNS)
    console.print(table(rows))
    console.print(f"Results: {out}", soft_wrap=True)
    steps = WholeConfig(
        device=config.device,
        model=config.topology,
        seconds=config.seconds / 2,
        quick=config.quick,
        threads=config.threads,
        seed=config.seed,
    )
    compiled = device.type == "cuda" if config.compile is None else config.compile
    with threads(config.threads):
        return bench_steps(steps, device, out.with_name("attack_steps.csv"), compiled)


def _columns(case: Case, config: Config) -> dict[str, Any]:
    options = case.options(config, Path("."))
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "attack": case.attack,
        "image_steps": image_steps(case, config),
        "train_steps": getattr(options, "train_steps", 0) * getattr(options, "rounds", 0),
        "draws": case.draws,
        "batch_size": case.batch_size,
        "low_memory": int(case.low_memory),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """What was measured, a row each."""
    found = Table(title="Attacks", title_justify="left")
    for name in ("attack", "batch", "draws", "low memory", "image steps/s", "against one by one", "peak MiB", "ratio"):
        found.add_column(name, justify="left" if name == "attack" else "right")
    for row in rows:
        shown = [row.get(name) for name in ("image_steps_per_s", "ratio_one_by_one", "peak_mib", "ratio_low_memory")]
        values = ["" if value is None else f"{value:.3g}" for value in shown]
        found.add_row(row["attack"], str(row["batch_size"]), str(row["draws"]), str(row["low_memory"]), *values)
    return found


if __name__ == "__main__":
    script(main, Config)
