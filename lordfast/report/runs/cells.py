"""The cells of an experiment as pictures and curves: a replicate of each dataset, from its training images on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lordfast.report.blocks import Block, Chart, Charts, Details, Gallery, Paragraph
from lordfast.report.charts import Line
from lordfast.report.loss_charts import curve, loss_chart, stage1_charts
from lordfast.report.runs.album import Album, Change, changes, pictures_of
from lordfast.report.runs.evaluate import detection_blocks
from lordfast.report.runs.nested import inner_runs
from lordfast.report.runs.read import Run, read_run

ATTACKED, DRAWN, ACROSS, GATES, LORDS = 3, 6, 6, 8, 8
"""What a page shows at most: pictures of an attack and of a method, curves in a chart, gates, and LoRDs."""

_REPLICATE = re.compile(r"(?:(?P<dataset>.+?)/)?identity-[^/]+/seed-[^/]+(?=/)")


@dataclass(frozen=True)
class Pictures:
    """What one replicate's pictures went through, and what was drawn after that.

    Attributes:
        title: of the attack, or of what the pictures went through.
        original, attacked: folders; None where nothing was attacked.
        drawn: method -> its folder of new pictures.
    """

    dataset: str
    title: str
    original: Path | None
    attacked: Path | None
    drawn: dict[str, Path]


class Cells:
    """The run folders in the cells of an experiment."""

    def __init__(self, experiment: Run) -> None:
        self.experiment, self.folder = experiment, experiment.path / "cells"
        self._paths = list(inner_runs(self.folder)) if self.folder.is_dir() else []
        grouped: dict[str, dict[str, list[Path]]] = {}
        for path in self._paths:
            match = _REPLICATE.match(f"{path.relative_to(self.folder).as_posix()}/")
            if match is not None and (path / "summary.json").exists():
                grouped.setdefault(match["dataset"] or "", {}).setdefault(match[0], []).append(path)
        # The first of those that have most finished runs.
        self._shown = {dataset: max(each.items(), key=lambda item: len(item[1])) for dataset, each in grouped.items()}

    def pictures(self) -> list[Pictures]:
        """As the experiment lists them; else one replicate of each dataset, attack by attack and method by method."""
        listed = (self.experiment.results or {}).get("pictures")
        if listed:
            return [self._listed(entry) for entry in listed]
        found = []
        for dataset, (name, _) in self._shown.items():
            drawn: dict[str, Path] = {}
            for place, run in self._runs(dataset):
                if run.kind == "attack":
                    images = run.input("images") or self.folder / name / "data" / "train"
                    found.append(Pictures(dataset, place, images, run.path, {}))
                elif run.kind == "generate":
                    drawn[place] = run.path
            ordered = dict(sorted(drawn.items(), key=lambda item: (not item[0].startswith("clean"), item[0])))
            found.append(Pictures(dataset, "", None, None, ordered))
        return found

    def _listed(self, entry: Mapping[str, Any]) -> Pictures:
        original, attacked = (
            self.experiment.path / entry[name] if entry.get(name) else None for name in ("original", "attacked")
        )
        drawn: dict[str, Path] = {}
        for method, place in (entry.get("generated") or {}).items():
            # One LoRA may stand for two methods: that of clean pictures is the undefended one, too.
            if (path := self.experiment.path / place) not in drawn.values():
                drawn[method] = path
        return Pictures(entry.get("dataset") or "", entry.get("exposure") or "", original, attacked, drawn)

    def _runs(self, dataset: str) -> Iterator[tuple[str, Run]]:
        """The finished runs of the replicate that is shown, with the names of their cells."""
        name, paths = self._shown[dataset]
        for path in paths:
            place = path.relative_to(self.folder / name).as_posix()
            yield place.rpartition("/")[0] or place, read_run(path)

    def lords(self) -> list[tuple[str, Run]]:
        """The Stage-1 runs, which replicates share."""
        paths = [path for path in self._paths if "stage1" in path.relative_to(self.folder).parts]
        return [(path.relative_to(self.folder).as_posix(), read_run(path)) for path in paths[:LORDS]]

    def gates(self) -> list[Block]:
        """Lambda of one replicate of each dataset, image by image, folded away for each LoRD and attack."""
        blocks: list[Block] = []
        for dataset, (name, _) in self._shown.items():
            for place, run in self._runs(dataset):
                detection = (run.summary or {}).get("detection")
                if run.kind == "evaluate" and detection is not None and len(blocks) < GATES:
                    title = f"λ image by image: {name}/{place.removesuffix('/metrics')}"
                    blocks.append(Details(title, detection_blocks(detection, run.rows)))
        return blocks


def picture_blocks(shown: Sequence[Pictures], album: Album) -> list[Block]:
    """Training images before and after each attack, and new pictures of each method."""
    blocks: list[Block] = []
    seen = set()
    for one in shown:
        # Where only a share of them was trained on, the attacked pictures are the same.
        if one.original is not None and one.attacked is not None and one.attacked not in seen:
            seen.add(one.attacked)
            names = sorted(path.name for path in one.attacked.glob("*.png"))[:ATTACKED]
            pairs = [Change(one.original / name, one.attacked / name, name) for name in names]
            gallery, factor, _ = changes(album, pairs, ("original", "attacked"))
            if gallery is not None:
                blocks.append(Paragraph(f"{one.title}: before, after, and what changed, {factor} times as strong."))
                blocks.append(gallery)
        rows = []
        for method, folder in one.drawn.items():
            pictures, total = pictures_of(folder, f"drawn by {method}", DRAWN)
            row = album.strip(method, pictures, f"{len(pictures)} of {total}")
            rows += [row] if row is not None else []
        if rows:
            kind = {"": "", "clean": " of LoRAs of clean pictures"}
            after = kind.get(one.title, f" of LoRAs of attacked pictures ({one.title})")
            blocks.append(Paragraph(f"New pictures{after}. At the same place, all methods start from the same noise."))
            blocks.append(Gallery(rows, across=DRAWN, cards=2))
    return blocks


def loss_blocks(shown: Sequence[Pictures], lords: Sequence[tuple[str, Run]]) -> list[Block]:
    """Loss curves of the LoRAs that drew the pictures shown, and of the LoRDs below them."""
    charts: list[Chart] = []
    for one in shown:
        found = (_loss(method, folder) for method, folder in one.drawn.items())
        lines = [line for line in found if line is not None]
        for first in range(0, len(lines), ACROSS):
            title = ", ".join(filter(None, ["Stage 2", one.dataset, one.title]))
            charts.append(loss_chart(title, lines[first : first + ACROSS]))
    folded = [Details(f"Stage 1: {name}", [Charts(drawn)]) for name, run in lords if (drawn := stage1_charts(run.rows))]
    return [*([Charts(charts)] if charts else []), *folded]


def _loss(method: str, drawn: Path) -> Line | None:
    """The loss of the LoRA that drew: its run is named by the config, and lies beside it where both were moved."""
    try:
        run = read_run(drawn)
        line = curve(read_run(run.input("lora") or drawn.parent / "lora").rows, "loss", method)
    except ValueError:
        return None
    return line if line.x else None
