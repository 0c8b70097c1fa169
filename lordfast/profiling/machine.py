"""What a measurement was made on: device, threads, versions; and how much memory its caches hide."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import lordfast
from lordfast.ops import _native
from lordfast.ops.choice import device_key
from lordfast.runs.host import resolve_device

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def find_device(name: str) -> torch.device:
    """A torch device by name; `auto` is CUDA where there is one, else the CPU.

    Raises:
        ValueError: no such device, or one that the benchmarks can't time.
    """
    device = resolve_device(name)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: {name!r} can't be timed here; expected auto, cpu, cuda or cuda:N")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def cache_bytes(device: torch.device) -> int:
    """The size of the largest cache: a CUDA device's L2, a CPU's last level (32 MiB where it is not known)."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [_size(path) for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(sizes, default=0) or 32 * 2**20


def _size(path: Path) -> int:
    text = path.read_text(encoding="ascii").strip()
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
    return int(text.rstrip("KMG") or 0) * unit


def describe(device: torch.device) -> dict[str, str]:
    """The columns of a result that say what it was measured on."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else cpu_name(),
        "device_key": device_key(device),
        "threads": str(torch.get_num_threads()),
        "cpu_isa": "" if _native.C is None else _native.C.cpu_isa(),
        "lordfast": lordfast.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "triton": _installed("triton"),
        "cuda": torch.version.cuda or "",
        "python": platform.python_version(),
        "driver": _command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else "",
    }


def cpu_name() -> str:
    """The CPU's model name, its architecture where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch and the native kernels use `count` threads.

    Raises:
        ValueError: a count below 1.
    """
    if count < 1:
        raise ValueError(f"threads is {count}; expected at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """The checkout's commit, "+" behind it where files have changed; "" outside a checkout."""
    for folder in (Path(lordfast.__file__).parents[1], Path.cwd()):
        if (folder / "lordfast").is_dir() and (folder / ".git").exists():
            commit = _command("git", "-C", str(folder), "rev-parse", "--short", "HEAD")
            changed = _command("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
            return commit + ("+" if commit and changed else "")
    return ""


def _command(*words: str) -> str:
    """The first line that a program prints, "" where it is missing or fails."""
    # Git must not take locks in a checkout that someone else may be working in.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True, env=environment)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout.strip().splitlines() or [""])[0]
