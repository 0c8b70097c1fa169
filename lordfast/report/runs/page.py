"""The page of a run: its command's part, and what every run has."""

from __future__ import annotations

from pathlib import Path

from lordfast.report.blocks import Block, Note, Page, Paragraph, Tiles
from lordfast.report.page import write_page
from lordfast.report.profile.page import profile_page
from lordfast.report.runs.album import BUDGET, Album
from lordfast.report.runs.common import progress_of, settings_section, warnings_section
from lordfast.report.runs.content import Content, Describe
from lordfast.report.runs.evaluate import describe_evaluate, describe_transfer
from lordfast.report.runs.experiment import describe_experiment
from lordfast.report.runs.nested import describe_other
from lordfast.report.runs.pictures import describe_attack, describe_generate, describe_pairs, describe_purify
from lordfast.report.runs.read import Run, read_json, read_run
from lordfast.report.runs.training import describe_stage1, describe_stage2, total_steps

REPORT = "report.html"

KINDS: dict[str, Describe] = {
    "attack": describe_attack,
    "purify": describe_purify,
    "generate": describe_generate,
    "pairs": describe_pairs,
    "stage1": describe_stage1,
    "stage2": describe_stage2,
    "evaluate": describe_evaluate,
    "transfer": describe_transfer,
    "experiment": describe_experiment,
}
"""By the first word of the command; of any other, what all runs have."""

_STEPS = {"stage1": "steps", "stage2": "steps", "generate": "pictures", "pairs": "pairs", "experiment": "cells"}


def write_report(folder: str | Path, out: str | Path | None = None, *, budget: int = BUDGET) -> Path:
    """Write the page of the run in `folder`; returns where it is.

    Args:
        folder: the --out of any command, also of an interrupted or a running one.
        out: the file to write; ``report.html`` in the run folder when left out.
        budget: bytes that the pictures on the page may take together.

    Raises:
        ValueError: no run is there, or a file of it is damaged; nothing is written then.
    """
    path = Path(out) if out is not None else Path(folder) / REPORT
    write_page(run_page(folder, budget=budget), path)
    return path


def run_page(folder: str | Path, *, budget: int = BUDGET) -> Page:
    """The page of the run in `folder`. Arguments and errors as for `write_report`."""
    run = read_run(folder)
    if run.kind == "profile" and (profile := read_json(run.path / "profile.json")) is not None:
        page = profile_page(profile)
        return Page(page.title, [*page.sections, settings_section(run, {})], page.top, page.kicker, page.foot)
    album = Album(budget)
    content = KINDS.get(run.kind, describe_other)(run, album)
    return Page(
        title=content.title,
        kicker=f"lordfast {run.command} · {run.path.resolve().name}",
        top=_top(run, content, album),
        sections=[*content.sections, *warnings_section(run), settings_section(run, content.seconds)],
        foot="Written by lordfast. This file holds everything it shows and loads nothing.",
    )


def _top(run: Run, content: Content, album: Album) -> list[Block]:
    notes = [Note(text) for text in content.notes]
    if not run.finished and run.kind != "experiment":
        what = _STEPS.get(run.kind, "rows")
        total = run.config.get("n") if run.kind == "generate" else total_steps(run)
        far = progress_of(run, total, what)
        notes.insert(
            0, Note(f"This run is unfinished: {far}. What is here is what it has left so far; --resume goes on.")
        )
    blocks: list[Block] = [Paragraph(content.story), *notes]
    blocks += [Tiles(content.tiles)] if content.tiles else []
    if album.left_out:
        size = f"{album.budget / 1e6:g} MB"
        blocks.append(
            Paragraph(f"{album.left_out:,} pictures were left out, so that those on this page stay below {size}.")
        )
    return blocks
