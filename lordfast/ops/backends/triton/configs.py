"""The configurations that are shipped: tile sizes by kernel, shape, element size and rank, with the reason for each.

The first row that matches a case is used until it is tuned; every matching row is a candidate of the tuner.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """One row. `kernel` is "forward" (the fused forward of one or three projections), "rows" or "dx" (the backward)."""

    kernel: str
    name: str
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int
    fold: str  # "kernel": P is folded in every program; "prep": in a launch of its own
    itemsize: int  # of x
    max_rank: int
    why: str
    least_m: int = 0  # the rows of x that the row is meant for
    most_m: int = 2**62
    least_fold: int = 0  # H * N

    @property
    def launch_options(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


TINY = {
 k: Config(k, "tiny", 16, 16, 16, 4, 1, "kernel", 2, 64, "x") for k in ("forward", "rows", "dx")
}
