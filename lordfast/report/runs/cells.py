"""The cells of an experiment as pictures: a replicate of each dataset, from its training images to what is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lordfast.report.blocks import Block, Chart, Charts, Details, Gallery, Paragraph
from lordfast.report.charts import Line
from lordfast.report.loss_charts import curve, loss_chart, stage1_charts
from lordfast.report.runs.album import Album, Change, changes, pictures_of
from lordfast.report.runs.evaluate import detection_blocks
from lordfast.report.runs.nested import inner_runs
from lordfast.report.runs.read import Run, read_run

ATTACKED, DRAWN, ACROSS = 3, 6, 6
"""Pictures of each attack and of each method that a page shows, and curves in one chart."""

_REPLICATE = re.compile(r"(?:(?P<dataset>.+?)/)?identity-[^/]+/seed-[^/]+(?=/)")


@dataclass(frozen=True)
class Replicate:
    """The finished runs of one replicate, by where they lie below it."""

    name: str
    dataset: str
    runs: dict[str, Run]

    def of(self, kind: str) -> Iterator[tuple[str, Run]]:
        """The runs of one command, with what they are called."""
        for place, run in self.runs.items():
            if run.kind == kind:
                yield place.rpartition("/")[0] or place, run


def find_replicates(cells: Path) -> list[Replicate]:
    """Of every dataset, the replicate with most finished runs: the first of those that have as many."""
    grouped: dict[str, dict[str, list[Path]]] = {}
    for path in inner_runs(cells):
        match = _REPLICATE.match(f"{path.relative_to(cells).as_posix()}/")
        if match is not None and (path / "summary.json").exists():
            grouped.setdefault(match["dataset"] or "", {}).setdefault(match[0], []).append(path)
    found = []
    for dataset, each in grouped.items():
        name = max(each, key=lambda name: len(each[name]))
        runs = {path.relative_to(cells / name).as_posix(): read_run(path) for path in each[name]}
        found.append(Replicate(name, dataset, runs))
    return found


def stage1_runs(cells: Path) -> list[tuple[str, Run]]:
    """The Stage-1 runs that replicates share, with what they are called."""
    found = [(path, read_run(path)) for path in inner_runs(cells) if "stage1" in path.relative_to(cells).parts]
    return [(path.relative_to(cells).as_posix(), run) for path, run in found if run.kind == "stage1"]


def replicate_blocks(one: Replicate, cells: Path, album: Album) -> list[Block]:
    """What was trained on, and what each method drew."""
    blocks: list[Block] = [
        Paragraph(f"Pictures and curves are those of one replicate, {one.name}: the one with most finished runs.")
    ]
    for name, run in one.of("attack"):
        images = run.input("images") or cells / one.name / "data" / "train"
        rows = [row for row in run.rows if "image" in row][:ATTACKED]
        pairs = [Change(images / row["image"], run.path / row["output"], row["image"]) for row in rows]
        gallery, factor, _ = changes(album, pairs, ("original", "attacked"))
        if gallery is not None:
            blocks += [Paragraph(f"{name}: before, after, and what changed, {factor} times as strong."), gallery]
    drawn = []
    for name, run in _drawn(one):
        pictures, total = pictures_of(run.path, f"drawn by {name}", DRAWN)
        row = album.strip(name, pictures, f"{len(pictures)} of {total}")
        drawn += [row] if row is not None else []
    if drawn:
        blocks.append(Paragraph("New pictures. Those at the same place start from the same noise in every method."))
        blocks.append(Gallery(drawn, across=DRAWN, cards=2))
    return blocks if len(blocks) > 1 else []


def _drawn(one: Replicate) -> list[tuple[str, Run]]:
    """The runs that drew pictures, those of clean training images first."""
    return sorted(one.of("generate"), key=lambda item: (not item[0].startswith("clean"), item[0]))


def loss_blocks(replicates: Sequence[Replicate], stage1: Sequence[tuple[str, Run]]) -> list[Block]:
    """Loss curves of the LoRAs of each replicate, and of the LoRDs below them."""
    charts: list[Chart] = []
    for one in replicates:
        lines = [line for name, run in _drawn(one) if (line := _loss(name, run)) is not None]
        for first in range(0, len(lines), ACROSS):
            title = f"Stage 2{f', {one.dataset}' if one.dataset else ''}"
            charts.append(loss_chart(title, lines[first : first + ACROSS], f"Of {one.name}."))
    folded = [Details(name, [Charts(drawn)]) for name, run in stage1[:8] if (drawn := stage1_charts(run.rows))]
    return [*([Charts(charts)] if charts else []), *folded]


def _loss(name: str, drawn: Run) -> Line | None:
    """The loss of the LoRA that drew: its run is named by the config, and lies beside it where both were moved."""
    lora = drawn.input("lora")
    if lora is None:
        lora = drawn.path.parent / "lora"
    try:
        line = curve(read_run(lora).rows, "loss", name)
    except ValueError:
        return None
    return line if line.x else None


def gate_blocks(one: Replicate, most: int = 6) -> list[Block]:
    """Lambda of one replicate, image by image, folded away for each LoRD and attack."""
    blocks: list[Block] = []
    for place, run in one.runs.items():
        detection = (run.summary or {}).get("detection")
        if run.kind == "evaluate" and detection is not None and len(blocks) < most:
            name = f"{one.name}/{place.removesuffix('/metrics/gate')}"
            blocks.append(Details(f"λ in {name}", detection_blocks(detection, run.rows)))
    return blocks
