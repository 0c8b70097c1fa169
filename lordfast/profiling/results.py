"""The CSV file of a benchmark: one row a measurement, complete after every case, never half a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lordfast.files import write_atomic

MACHINE_COLUMNS = (
    "date",  # UTC, ISO 8601
    "device",
    "device_key",
    "threads",
    "cpu_isa",
    "lordfast",
    "commit",
    "torch",
    "triton",
    "cuda",
    "python",
    "driver",
)

COLUMNS = (
    *MACHINE_COLUMNS,
    "op",  # lord_linear, pgd_step, unet
    "direction",  # forward, forward+backward, training step
    "case",
    "M",
    "K",
    "N",
    "x_grad",  # 1 where the backward pass also computes dx
    "r",
    "H",
    "granularity",
    "dtype",
    "variant",
    "backend",  # what ran inside lordfast's variants, such as native or native+reference
    "timing",  # perf_counter, cuda graph, or launches where no graph could be captured
    "median_us",
    "p20_us",
    "p80_us",
    "repeats",
    "ratio_bare",
    "ratio_eager",
    "ratio_eager_compiled",
    "ratio_peft",
    "gbps",  # compulsory bytes over the median
    "gflops",
    "peak_gbps",  # of a copy, same run
    "peak_gflops",  # of a square matrix product in this dtype, same run
    "error",  # ||err|| / ||exact|| of the tensor that is nearest to its limit
    "gate",  # ok, not checked, red: why, refused: why
)

Row = dict[str, Any]


class ResultsFile:
    """Rows that are on disk as soon as they are added; an earlier results file of this name is replaced by the first.

    Raises:
        ValueError: `path` exists and holds something else.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path is not None and path.exists():
            read_rows(path)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows; columns that one lacks stay empty, foreign ones are a KeyError."""
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        for row in rows:
            foreign = sorted(set(row) - set(COLUMNS))
            if foreign:
                raise KeyError(f"no such columns: {', '.join(foreign)}")
            self.rows.append({"date": now, **row})
        if self.path is not None:
            write_rows(self.path, self.rows)

    @property
    def red(self) -> list[Row]:
        """The rows whose numbers were wrong."""
        return [row for row in self.rows if str(row["gate"]).startswith("red")]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> None:
    """Write a results file through a temporary one, so that it is the old or the new one at every moment."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _shown(value) for name, value in row.items()} for row in rows)
    write_atomic(path, text.getvalue().encode())


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a results file, all values as text.

    Raises:
        ValueError: the file can't be read, or was not written by `write_rows`.
    """
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            rows, names = list(reader), reader.fieldnames
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no readable results file: {error}") from error
    if tuple(names or ()) != COLUMNS:
        raise ValueError(f"{path} holds no benchmark results: its columns are not those of lordfast's benchmarks")
    return rows


def _shown(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
