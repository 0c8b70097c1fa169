"""The configurations that are shipped: tile sizes by kernel, shape, element size and rank, with the reason for each.

The first row that matches a case is used where nothing is tuned; every row that matches is a candidate of the tuner.
No row was timed when it was written: the order says what the arithmetic of tiles, waves and registers favours. None
spills with Triton 3.7, which torch 2.13 comes with, nor with 3.9.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

ANY = 2**62


@dataclass(frozen=True)
class Config:
    """One row of the table.

    `kernel` is "forward" (of one projection or three), "rows" or "dx" (the first two steps of the backward pass).
    BLOCK_M is over tokens, BLOCK_N and BLOCK_K over the weight's dimensions N and K, whichever of them is summed over.
    """

    name: str
    kernel: str
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int
    why: str
    itemsize: int = 2  # bytes of an element of x
    max_rank: int = 64
    least_rank: int = 1
    least_m: int = 0
    most_m: int = ANY
    fold: str = "kernel"  # P is folded in every program of the kernel, or by "prep" in a launch of its own
    least_gate: int = 0  # H N, the entries of W1

    @property
    def launch_options(self) -> dict[str, int | bool]:
        # Fusing a product into a sum only saves a rounding; newer Triton wants to be told.
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}

    def takes(self, kernel: str, itemsize: int, rank: int, m: int, gate: int) -> bool:
        same = kernel == self.kernel and itemsize == self.itemsize
        return (
            same
            and self.least_rank <= rank <= self.max_rank
            and self.least_m <= m <= self.most_m
            and gate >= self.least_gate
        )

    def tile(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if name.startswith("BLOCK_")}


# Programs for SD1.5's and SDXL's projections: (16384, 320, 320) has 128 row blocks of 128, (4096, 640) and (1024, 1280)
# have 5 and 10 tiles of 128 across, text keys and values have 77 to 308 rows.
TABLE = (
    Config("wide", "forward", 128, 128, 32, 8, 2, "fewest rereads of x and u's columns; 384 tiles at 16384 x 320",
           max_rank=16, least_m=2048),
    Config("tall", "forward", 128, 64, 64, 8, 3, "320 is five whole tiles of 64, where tiles of 128 waste a sixth",
           max_rank=16, least_m=512),
    Config("square", "forward", 64, 64, 64, 4, 3, "enough tiles for every SM at 1024 x 1280 and at small batches",
           max_rank=32),
    Config("low", "forward", 32, 64, 64, 4, 3, "text keys and values: 77 to 308 rows have few tiles of 64",
           max_rank=32, most_m=512),
    Config("square-prep", "forward", 64, 64, 64, 4, 3, "a gate so large that its fold in every tile outweighs a launch",
           max_rank=16, fold="prep", least_gate=20_000),
    Config("high-rank", "forward", 32, 64, 32, 4, 2, "ranks to 64 need up to 128 packed columns, so fewer rows",
           least_rank=33),
    Config("tall", "rows", 64, 32, 0, 4, 2, "256 programs at 16384 rows, partials a fifth of dY's bytes",
           max_rank=16, least_m=2048),
    Config("low", "rows", 16, 64, 0, 4, 2, "64 programs at 1024 rows; one program walks all of N, so rows are few",
           max_rank=16),
    Config("low-prep", "rows", 16, 64, 0, 4, 2, "a gate so large that its fold in every program outweighs a launch",
           max_rank=16, fold="prep", least_gate=20_000),
    Config("high-rank", "rows", 16, 32, 0, 4, 2, "v1 and v2 of ranks to 64 are 128 columns together, C as many again",
           least_rank=17),
    Config("wide", "dx", 128, 64, 128, 8, 3, "the widest tile of dx, so that dY is read least",
           max_rank=16, least_m=2048),
    Config("square", "dx", 64, 64, 64, 4, 3, "320, 640 and 1280 are whole numbers of it; enough tiles at 1024 x 1280",
           max_rank=32),
    Config("high-rank", "dx", 64, 32, 32, 4, 2, "ranks to 64 need up to 128 packed rows for dA",
           least_rank=33),
    Config("fp32", "forward", 32, 32, 32, 4, 2, "fp32 products run on the FMA units, a register a number", itemsize=4,
           max_rank=32),
    Config("fp32-high-rank", "forward", 16, 32, 16, 4, 3, "as above", itemsize=4, least_rank=33),
    Config("fp32", "rows", 16, 32, 0, 4, 4, "as above", itemsize=4, max_rank=32),
    Config("fp32-high-rank", "rows", 16, 16, 0, 4, 1, "as above", itemsize=4, least_rank=33),
    Config("fp32", "dx", 32, 32, 32, 4, 2, "as above", itemsize=4),
)  # fmt: skip


def candidates(kernel: str, itemsize: int, rank: int, m: int, gate: int) -> tuple[Config, ...]:
    """The rows for a case, the one to use untuned first; never empty for ranks up to 64."""
    return tuple(row for row in TABLE if row.takes(kernel, itemsize, rank, m, gate))
