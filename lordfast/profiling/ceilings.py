"""What this machine can do at best, measured in the same run: the bandwidth of a copy, the rate of a matrix product."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from . import costs
from .accuracy import Outputs
from .machine import cache_bytes
from .rounds import Effort, time_in_turn
from .stopwatch import CpuStopwatch, LaunchStopwatch, Rotation


@dataclass(frozen=True)
class Ceilings:
    """GB/s of a copy from and to memory (both counted), and GFLOP/s of a square product by dtype."""

    gbps: float
    gflops: dict[str, float]

    def columns(self, dtype: str) -> dict[str, float | None]:
        """The columns of a result in this dtype."""
        return {"peak_gbps": self.gbps, "peak_gflops": self.gflops.get(dtype)}


def measure_ceilings(
    device: torch.device, dtypes: dict[str, torch.dtype], *, seconds: float = 2.0, side: int | None = None
) -> Ceilings:
    """Both ceilings, `seconds` each; `side` of the square matrices (2048, on CUDA 8192)."""
    elements = max(cache_bytes(device) * 4, 2**20) // 4
    target, source = (torch.ones(elements, device=device) for _ in range(2))

    def copied(_: None) -> Outputs:
        return {"y": target.copy_(source)}

    gbps = costs.copy(elements, 4).bytes / _median(copied, device, seconds) / 1e9
    side = side or (8192 if device.type == "cuda" else 2048)
    gflops = {}
    for name, dtype in dtypes.items():
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

        def product(_: None, a: torch.Tensor = a, b: torch.Tensor = b) -> Outputs:
            return {"y": a @ b}

        gflops[name] = 2 * side**3 / _median(product, device, seconds / len(dtypes)) / 1e9
    return Ceilings(gbps, gflops)


def _median(run: Any, device: torch.device, seconds: float) -> float:
    rotation: Rotation[None] = Rotation([None])
    watch = (LaunchStopwatch if device.type == "cuda" else CpuStopwatch)(run, rotation, nullcontext)
    return time_in_turn({"": watch}, Effort(repeats=50, seconds=seconds, least=3))[""].median
