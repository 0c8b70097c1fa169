"""Simulate Stage 1 and attacks on up to 1 000 GPUs. `python benchmarks/scaling.py --help`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lordfast.adapter import LordConfig
from lordfast.diffusion.topologies import build_denoiser, find_topology
from lordfast.files import write_atomic
from lordfast.profiling.session import script

BEGIN, END = "<!-- scaling:begin -->", "<!-- scaling:end -->"
GPUS = (1, 8, 64, 256, 1000)
PAPER_IMAGES, PAPER_EPOCHS = 1000, 100


@dataclass(frozen=True)
class Link:
    """The slowest link of a ring: what its vendor calls its speed, and an assumed time that a message needs at least.

    Attributes:
        bytes_per_second: in one direction.
        latency: seconds, one hop with all software on the way.
    """

    name: str
    bytes_per_second: float
    latency: float


LINKS = (
    Link("NVLink 4, 450 GB/s", 450e9, 3e-6),
    Link("InfiniBand 400 Gb/s", 50e9, 5e-6),
    Link("InfiniBand 200 Gb/s", 25e9, 5e-6),
    Link("InfiniBand 100 Gb/s", 12.5e9, 5e-6),
    Link("Ethernet 10 Gb/s", 1.25e9, 30e-6),
)
NVLINK_MOST = 8
"""GPUs that one NVLink domain is assumed to hold."""


def all_reduce_seconds(count: int, size: float, link: Link) -> float:
    """A ring all-reduce of `size` bytes over `count` processes: 2 (n-1)/n size / B + 2 (n-1) latency."""
    return 2 * (count - 1) / count * size / link.bytes_per_second + 2 * (count - 1) * link.latency


def gather_seconds(count: int, size: float, messages: int, link: Link) -> float:
    """Ring all-gathers of `size` bytes in so many messages: (n-1)/n size / B + messages (n-1) latency."""
    return (count - 1) / count * size / link.bytes_per_second + messages * (count - 1) * link.latency


def efficiency(step: float, communication: float) -> float:
    """The share of the time in which a GPU computes, if nothing of the communication hides behind it."""
    return step / (step + communication)


@dataclass(frozen=True)
class Sizes:
    """Parameters of a model: its frozen denoiser, the LoRD that is trained, and its blocks that FSDP gathers."""

    base: int
    trained: int
    blocks: int


def sizes(model: str, targets: Sequence[str], rank: int, gate_hidden: int) -> Sizes:
    """Counted in the model itself, which takes no memory on the meta device."""
    denoiser = build_denoiser(find_topology(model), device="meta")
    base = sum(parameter.numel() for parameter in denoiser.parameters())
    names = set(getattr(denoiser, "_no_split_modules", None) or ())
    blocks = sum(type(module).__name__ in names for module in denoiser.modules())
    config = LordConfig(r=rank, target_modules=list(targets), gate_hidden=gate_hidden)
    denoiser.add_adapter(config, adapter_name="lord")
    return Sizes(base, sum(p.numel() for p in denoiser.parameters() if p.requires_grad), blocks + 1)


@dataclass(kw_only=True)
class Config:
    """A simulation, not a measurement: a step's time and the bytes it sends, against the speed of links."""

    step_seconds: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    """Seconds that one GPU needs for a training step, in an attack for an image: a range where none was measured."""
    results: Path | None = None
    """Take the time of a training step from this results file of bench_stage1.py instead."""
    variant: str = "lordfast"
    """The variant in that file, of the models and the batch size below."""
    models: tuple[str, ...] = ("sd15", "sdxl")
    """Topologies whose gradients are counted."""
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Layers with a LoRD."""
    rank: int = 4
    """Its rank."""
    gate_hidden: int = 16
    """Width of its gate."""
    batch_size: int = 16
    """Images per step and GPU."""
    image_bytes: float = 0.7e6
    """Bytes that an attacked image costs the file server, read and written."""
    server_gb_per_second: float = 2.0
    """What the file server gives to all together, in GB/s."""
    write: Path | None = None
    """Put the tables between the markers of this Markdown file."""


def main(config: Config) -> int:
    """Print or write the tables."""
    if not config.step_seconds or min(config.step_seconds) <= 0:
        raise ValueError(f"step_seconds: expected numbers above 0, got {config.step_seconds}")
    training = [_training(config, model, _steps(config, model)) for model in config.models]
    text = "\n\n".join([_inputs(config), *training, _attacks(config, config.step_seconds)])
    if config.write is None:
        print(text)
        return 0
    page = config.write.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        raise ValueError(f"write: {config.write} has no lines {BEGIN} and {END}")
    head, tail = page.split(BEGIN)[0], page.split(END)[1]
    write_atomic(config.write, f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}".encode())
    return 0


def _steps(config: Config, model: str) -> tuple[float, ...]:
    """Seconds of a training step: measured where there is a file, else the range."""
    if config.results is None:
        return config.step_seconds
    with config.results.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("step") == "stage1" and row.get("median_s")]
    there = {(row["model"], row["variant"], int(row["batch"])): float(row["median_s"]) for row in rows}
    wanted = (model, config.variant, config.batch_size)
    if wanted not in there:
        found = "; ".join(" ".join(map(str, case)) for case in there) or "none"
        raise ValueError(
            f"results: {config.results} has no stage1 step of {' '.join(map(str, wanted))}; expected one of: {found}"
        )
    return (there[wanted],)


def _inputs(config: Config) -> str:
    where = (
        f"measured, `{config.results.name}`, {config.variant}, of Stage 1 alone"
        if config.results is not None
        else "a range, not measured"
    )
    lines = [
        "**Simulated, not measured.** Inputs:",
        "",
        f"* seconds per step: {where}; {config.batch_size} images a step and GPU",
        f"* LoRD of rank {config.rank}, gate {config.gate_hidden}, on {', '.join(config.target_modules)}; in fp32",
    ]
    for model in config.models:
        counted = sizes(model, config.target_modules, config.rank, config.gate_hidden)
        lines.append(
            f"* {model}: {counted.trained / 1e6:.2f} M trained parameters, {4 * counted.trained / 1e6:.1f} MB a step; "
            f"{counted.base / 1e6:.0f} M frozen ones, {2 * counted.base / 1e9:.2f} GB in bf16, {counted.blocks} groups"
        )
    links = "; ".join(f"{link.name}: {link.latency * 1e6:.0f} us" for link in LINKS)
    return "\n".join([*lines, f"* latency of a hop, assumed: {links}"])


def _training(config: Config, model: str, steps: Sequence[float]) -> str:
    counted = sizes(model, config.target_modules, config.rank, config.gate_hidden)
    sent, base = 4.0 * counted.trained, 2.0 * counted.base
    rows = [f"Efficiency of Stage 1, {model}:", ""]
    rows += _header(
        ["link", "GPUs", "all-reduce", *(f"{step:g} s/step" for step in steps), f"FSDP, {steps[-1]:g} s/step"]
    )
    for link in LINKS:
        for count in (count for count in GPUS[1:] if count <= (NVLINK_MOST if "NVLink" in link.name else count)):
            cost = all_reduce_seconds(count, sent, link)
            # The base is gathered once forward and once backward.
            sharded = cost + 2 * gather_seconds(count, base, counted.blocks, link)
            cells = [f"{efficiency(step, cost):.1%}" for step in steps]
            rows.append(
                _row([link.name, str(count), f"{cost * 1e3:.1f} ms", *cells, f"{efficiency(steps[-1], sharded):.1%}"])
            )
    link = LINKS[1]
    rows += [
        "",
        f"Images per second, and the paper's {PAPER_EPOCHS} epochs of {PAPER_IMAGES} images, {model}, {link.name}:",
        "",
    ]
    rows += _header(["GPUs", "images a step", "steps", *(f"{step:g} s/step" for step in steps)])
    for count in GPUS:
        batch = count * config.batch_size
        total = -(-PAPER_IMAGES * PAPER_EPOCHS // batch)
        times = [step + all_reduce_seconds(count, sent, link) for step in steps]
        cells = [f"{batch / time:.0f}/s, {_duration(total * time)}" for time in times]
        rows.append(_row([str(count), str(batch), str(total), *cells]))
    return "\n".join(rows)


def _attacks(config: Config, seconds: Sequence[float]) -> str:
    most = config.server_gb_per_second * 1e9 / config.image_bytes
    measured = config.results is not None
    note = "The seconds an image are a range, not measured, whatever the file says of Stage 1. " if measured else ""
    rows = [
        f"Attacks send nothing. {note}"
        f"Images per second, with a file server of {config.server_gb_per_second:g} GB/s and "
        f"{config.image_bytes / 1e6:g} MB read and written an image, {most:.0f} images a second at most:",
        "",
        *_header(["GPUs", *(f"{second:g} s/image" for second in seconds)]),
    ]
    for count in GPUS:
        cells = [
            f"{min(count / second, most):.3g}" + (" (server)" if count / second > most else "") for second in seconds
        ]
        rows.append(_row([str(count), *cells]))
    return "\n".join(rows)


def _duration(seconds: float) -> str:
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} s"


def _header(cells: Sequence[str]) -> list[str]:
    return [_row(cells), "|" + "|".join(["---", *["---:"] * (len(cells) - 1)]) + "|"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    script(main, Config)
