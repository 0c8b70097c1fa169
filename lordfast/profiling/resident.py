"""How much memory a piece of work needs at most, by the system's own account of this process or of a CUDA device."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that `work` needs at most above what is held now: resident memory, or torch's on CUDA.

    On a CPU the process should be a fresh one: memory that its allocators keep from earlier hides what is measured.

    Raises:
        OSError: on a CPU, a system other than Linux.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    before = reset_peak()
    work()
    return status("VmHWM") - before


def reset_peak() -> int:
    """Give freed memory back, forget the peak so far, and return the resident bytes. Linux alone can do it."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return status("VmRSS")


def status(name: str) -> int:
    """A line of this process's memory, such as VmRSS or VmHWM, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith(f"{name}:"))
