"""Make the dispatcher's table from results. `python benchmarks/dispatch_table.py ops.csv pgd.csv --out table.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lordfast.profiling.dispatch_table import dispatch_table, write_table
from lordfast.profiling.results import read_rows
from lordfast.profiling.session import script


@dataclass(kw_only=True)
class Config:
    """The backends' ratios to the bare layer, by operation, dtype and shape, as JSON."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Results files of one device."""
    out: Path
    """The JSON file."""


def main(config: Config) -> int:
    """Read, condense, write."""
    table = dispatch_table([row for path in config.results for row in read_rows(path)])
    write_table(table, config.out)
    print(f"{len(table['rows'])} rows for {table['device']}: {config.out}")
    return 0


if __name__ == "__main__":
    script(main, Config)
