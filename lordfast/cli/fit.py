"""``lordfast info --fit MODEL --memory 24GB``: the settings with which each task fits into a memory."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lordfast.files import expand_user


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of --fit."""
    parser.add_argument(
        "--fit",
        metavar="MODEL",
        help="instead: which settings of attack, stage1 and stage2 fit into --memory; MODEL is a folder, a hub id, "
        "demo, or an architecture: sd15, sd21, sdxl, sd3. Weights are never loaded",
    )
    parser.add_argument("--memory", help="of the device, for --fit: 24GB, 24GiB, 8000MB; default: the GPU's own")
    parser.add_argument("--task", choices=("attack", "stage1", "stage2"), help="for --fit; default: all three")
    parser.add_argument("--resolution", type=int, help="for --fit: side in pixels; default: the model's own")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="bf16", help="for --fit; default: bf16")


def run_fit(options: argparse.Namespace) -> None:
    """Print what fits.

    Raises:
        ValueError: no such model, memory or resolution.
    """
    found = collect(expand_user(options.fit), options.memory, options.task, options.resolution, options.dtype)
    print(json.dumps(found, indent=2) if options.json else to_text(found))


def collect(model: str, memory: str | None, task: str | None, resolution: int | None, dtype: str) -> dict[str, Any]:
    """What fits, as JSON values."""
    from lordfast.diffusion.configs import read_topology
    from lordfast.training.memory.estimate import TASKS, Estimator
    from lordfast.training.memory.fit import WANTED, check_side, find_fits, least_needed
    from lordfast.training.memory.sizes import parse_memory
    from lordfast.training.progress import progress

    size = _device_memory() if memory is None else parse_memory(memory)
    topology = read_topology(model)
    side = check_side(topology, resolution)
    estimator = Estimator(topology, side, extrapolate=True)
    tasks: dict[str, Any] = {}
    chosen = [name for name in TASKS if task in (None, name)]
    with progress("estimating", len(chosen)) as advance:
        for name in chosen:
            fits = find_fits(estimator, name, size, dtype)
            tasks[name] = {
                "wanted_batch_size": WANTED[name],
                "fits": [
                    {
                        "batch_size": fit.switches.batch_size,
                        "peak_bytes": fit.estimate.peak,
                        "phase": fit.estimate.worst.name,
                        "flags": fit.flags() + ([] if resolution is None else ["--resolution", str(resolution)]),
                    }
                    for fit in fits
                ],
                "needed_bytes": None if fits else least_needed(estimator, name, dtype),
            }
            advance()
    return {"model": model, "memory_bytes": size, "resolution": side, "dtype": dtype, "tasks": tasks}


def to_text(found: dict[str, Any]) -> str:
    """`collect` for people."""
    from lordfast.training.memory.fit import RESERVED
    from lordfast.training.memory.sizes import show_memory

    lines = [
        f"{found['model']} at {found['resolution']} px, {found['dtype']}, in {show_memory(found['memory_bytes'])}, of "
        f"which {RESERVED:.0%} stay free. Estimated peaks; the least painful settings first, larger "
        "batches further down."
    ]
    for name, task in found["tasks"].items():
        lines += ["", f"lordfast {name}"]
        for fit in task["fits"]:
            lines.append(f"  {show_memory(fit['peak_bytes']):>8} ({fit['phase']})  {' '.join(fit['flags'])}")
        if not task["fits"]:
            lines.append(f"  nothing fits: the most frugal settings need {show_memory(task['needed_bytes'])}")
    return "\n".join(lines)


def _device_memory() -> int:
    import torch

    if not torch.cuda.is_available():
        raise ValueError("memory: there is no GPU whose memory could be taken; expected an amount such as 24GB")
    return int(torch.cuda.get_device_properties(0).total_memory)
