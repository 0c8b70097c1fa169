"""``lordfast info``: versions, devices, backends and why one is missing."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lordfast.cli import fit

PACKAGES = (
    "torch",
    "diffusers",
    "peft",
    "transformers",
    "accelerate",
    "torchmetrics",
    "numpy",
    "pillow",
    "safetensors",
    "triton",
    "xformers",
    "nvtx",
)


def run(args: list[str]) -> None:
    """Parse and print."""
    parser = argparse.ArgumentParser(
        prog="lordfast info", description="Versions, devices, backends and why one is missing."
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument(
        "--explain",
        nargs=4,
        metavar=("M", "N", "K", "DTYPE"),
        help="instead: which backend runs a LoRD layer of K inputs and N outputs on M tokens, and why "
        "(DTYPE: fp32, bf16 or fp16)",
    )
    parser.add_argument(
        "--device", default=None, help="the device that --explain is about; default: cuda if there is one"
    )
    fit.add_arguments(parser)
    options = parser.parse_args(args)
    if options.fit:
        fit.run_fit(options)
        return
    if options.explain:
        m, n, k, dtype = options.explain
        found = explain_case(m, n, k, dtype, options.device)
        print(json.dumps(found, indent=2) if options.json else explanation_text(found))
        return
    info = collect_info()
    print(json.dumps(info, indent=2) if options.json else to_text(info))


def explain_case(m: str, n: str, k: str, dtype: str, device: str | None) -> list[dict[str, Any]]:
    """What decides the backend of a LoRD layer's forward and backward pass, as JSON values."""
    import torch

    from lordfast.ops.explain import explain_lord
    from lordfast.runs.host import resolve_device

    dtypes = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    name = dtypes.get(dtype, dtype)
    if name not in (*dtypes.values(), "float64"):
        raise ValueError(f"--explain: DTYPE is {dtype!r}; expected fp32, bf16 or fp16")
    sizes: list[int] = []
    for letter, text in zip("MNK", (m, n, k), strict=True):
        if not text.isdecimal():
            raise ValueError(f"--explain: {letter} is {text!r}; expected a positive integer")
        sizes.append(int(text))
    where = resolve_device("auto" if device is None else device)
    tokens, outputs, inputs = sizes
    return [asdict(found) for found in explain_lord(tokens, outputs, inputs, getattr(torch, name), where)]


def explanation_text(found: list[dict[str, Any]]) -> str:
    """`explain_case` for people."""
    lines = []
    for one in found:
        lines += [f"{one['op']} on {one['device']}", f"  table: {one['table']}"]
        if one["forced"]:
            lines.append(
                f"  forced: {one['forced']}" + ("" if one["runs"] else ", which can't run it: such a call raises")
            )
        for candidate in one["candidates"]:
            ratio = "not measured" if candidate["ratio"] is None else f"{candidate['ratio']:.2f} x the bare linear"
            mark = "->" if candidate["backend"] == one["runs"] else "  "
            text = ratio if candidate["why_not"] is None else f"can't: {candidate['why_not']}"
            lines.append(f"  {mark} {candidate['backend']:<10} {text}")
    return "\n".join(lines)


def collect_info() -> dict[str, Any]:
    """Everything that a bug report should say, as JSON values. Never raises: what can't be read says why."""
    readers: dict[str, Callable[[], Any]] = {
        "lordfast": _lordfast,
        "python": lambda: f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform,
        "packages": lambda: {name: _version(name) for name in PACKAGES},
        "cpu": _cpu,
        "cuda": _cuda,
        "native": _native,
        "backends": _backends,
        "demo_model": _demo_model,
        "cache": _cache,
    }
    with warnings.catch_warnings():
        # Missing parts are reported below, each with its reason.
        warnings.simplefilter("ignore")
        return {name: _attempt(read) for name, read in readers.items()}


def _attempt(read: Callable[[], Any]) -> Any:
    try:
        return read()
    # A broken installation raises anything, and is just where this command is needed.
    except Exception as error:
        return f"unavailable: {type(error).__name__}: {error}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _lordfast() -> str:
    import lordfast

    return f"{lordfast.__version__} ({Path(lordfast.__file__).parent})"


def _cpu() -> dict[str, Any]:
    from lordfast.profiling.machine import cpu_name

    return {
        "name": _attempt(cpu_name),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": _attempt(_threads),
        "isa": _attempt(_isa),
    }


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _isa() -> str:
    from lordfast.ops import _native

    return _native.C.cpu_isa() if _native.C is not None else "unknown: the native extension is not loaded"


def _cuda() -> dict[str, Any]:
    import torch

    if torch.version.cuda is None:
        return {"devices": [], "reason": f"torch {torch.__version__} is built without CUDA"}
    if not torch.cuda.is_available():
        return {"devices": [], "reason": "torch finds no usable CUDA device or driver", "torch": torch.version.cuda}
    devices = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        memory = round(found.total_memory / 2**30, 1)
        devices.append({"name": found.name, "capability": f"{found.major}.{found.minor}", "memory_gib": memory})
    return {"devices": devices, "reason": None, "torch": torch.version.cuda}


def _native() -> dict[str, Any]:
    from lordfast.ops import _native

    if _native.C is None:
        return {"loaded": False, "reason": _native.reason}
    return {
        "loaded": True,
        "file": _native.C.__file__,
        "build": _attempt(_native.C.build_info),
        "isas": _attempt(_native.C.available_isas),
        "cuda": _attempt(_native.C.cuda_status),
    }


def _backends() -> dict[str, str]:
    from lordfast.ops import available_backends

    return available_backends()


def _demo_model() -> dict[str, Any]:
    from lordfast.diffusion.resolve import DEMO_MODEL
    from lordfast.files import folder_bytes

    present = (DEMO_MODEL / "model_index.json").is_file()
    return {"folder": str(DEMO_MODEL), "present": present, "mib": round(folder_bytes(DEMO_MODEL) / 2**20, 1)}


def _cache() -> dict[str, Any]:
    from lordfast.files import default_cache_dir

    folder = default_cache_dir()
    return {"folder": str(folder), "exists": folder.is_dir()}


def to_text(info: dict[str, Any]) -> str:
    """`collect_info` for people: a line for each value, aligned."""
    lines: list[tuple[str, str]] = []

    def add(depth: int, name: str, value: Any) -> None:
        head = "  " * depth + name
        if isinstance(value, dict) and value:
            lines.append((head, ""))
            for key, inner in value.items():
                add(depth + 1, key, inner)
        elif isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
            lines.append((head, ""))
            for number, inner in enumerate(value):
                add(depth + 1, str(number), inner)
        else:
            lines.append((head, _shown(value)))

    for name, value in info.items():
        add(0, name, value)
    width = max(len(head) for head, _ in lines) + 2
    return "\n".join(f"{head:<{width}}{text}".rstrip() for head, text in lines)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple | dict):
        return ", ".join(map(str, value)) or "none"
    return str(value)
