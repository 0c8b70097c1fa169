"""``lordfast dataset ID``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lordfast.cli.parse import Stopped, parse, report
from lordfast.data.hub import DatasetRequest
from lordfast.data.images import BadImageError


@dataclass(kw_only=True)
class DatasetConfig(DatasetRequest):
    """Bring images of a Hugging Face dataset, from the hub or local, into a folder that every command takes.

    lordfast dataset ID is short for lordfast dataset --source ID. The same line again reuses the folder, or goes on
    after an interruption.
    """

    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """At most so many images; all when left out. No more of the dataset is read than that takes."""
    out: Path | None = None
    """Folder to make, captions in metadata.jsonl and its origin in dataset.json; one in the cache when left out."""
    overwrite: bool = False
    """Replace the folder in --out if it was made of another dataset or with other settings."""


def run(args: list[str]) -> None:
    """Parse, and make the folder."""
    from lordfast.data.dataset import materialise
    from lordfast.training.interrupt import Interrupted, StopOnSignal
    from lordfast.training.progress import progress

    words = ["--source", *args] if args and not args[0].startswith("-") else args
    config = parse(DatasetConfig, "dataset", words)
    made = 0
    with StopOnSignal() as stop, progress("images", config.n) as advance:

        def on_image(done: int) -> None:
            nonlocal made
            advance(done - made)
            made = done
            if stop.requested and done != config.n:
                raise Interrupted(f"after {done} images")

        try:
            folder = materialise(
                config, config.out, overwrite=config.overwrite, on_image=on_image, on_bad=_report_skipped
            )
        except Interrupted as interrupted:
            raise Stopped(interrupted.done, shlex.join(["lordfast", "dataset", *args])) from None
    report(f"{made} images: {folder}" if made else f"there already: {folder}")


def _report_skipped(error: BadImageError) -> None:
    print(f"skipped {error}", file=sys.stderr)
