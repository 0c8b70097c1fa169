"""``lordfast report RUN``."""

from __future__ import annotations

import argparse
from pathlib import Path

from lordfast.files import expand_user


def run(args: list[str]) -> None:
    """Parse, and write the page of a run."""
    parser = argparse.ArgumentParser(
        prog="lordfast report",
        description="Write report.html of any run or experiment, finished or not: pictures, curves, tables with "
        "intervals, settings, versions and times. The page holds everything it shows and loads nothing.",
    )
    parser.add_argument("folder", metavar="RUN", type=_path, help="the --out folder of any command")
    parser.add_argument(
        "--out", metavar="FILE", type=_path, help="where to write the page; default: report.html in the run folder"
    )
    parser.add_argument(
        "--megabytes",
        type=float,
        default=3.0,
        metavar="N",
        help="how much of pictures the page may hold (default: %(default)g)",
    )
    found = parser.parse_args(args)
    if not 0 <= found.megabytes < float("inf"):
        raise ValueError(f"megabytes: expected a number of 0 or more, got {found.megabytes}")
    if found.out is not None and found.out.is_dir():
        raise ValueError(f"out: {found.out} is a folder; expected a file to write")
    print(_write(found.folder, found.out, int(found.megabytes * 1e6)))


def _path(text: str) -> Path:
    return Path(expand_user(text))


def _write(folder: Path, out: Path | None, budget: int) -> Path:
    from lordfast.report import write_page
    from lordfast.report.runs import read_run, write_report

    run = read_run(folder)
    if run.kind == "demo" and run.finished:
        # Its page is a story of its own; before its end it is a run like others.
        from lordfast.demo.report import demo_page

        path = out if out is not None else folder / "report.html"
        write_page(demo_page(folder), path)
        return path
    return write_report(folder, out, budget=budget)
