"""Pages of the commands that train: stage1 and stage2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lordfast.data import BadImageError, list_images, load_image, load_images
from lordfast.report.blocks import Block, Charts, Details, Gallery, Note, Paragraph, Picture, Tile
from lordfast.report.difference import amplified, factor_for
from lordfast.report.loss_charts import curve, loss_chart, stage1_charts
from lordfast.report.runs.album import Album, pictures_of, thumbnail
from lordfast.report.runs.common import finite_count, metric_charts, seconds_tile
from lordfast.report.runs.content import Content, counted, section
from lordfast.report.runs.read import Run
from lordfast.report.runs.tables import is_number, plain
from lordfast.training.examples import ImageOptions

SHOWN = 9
_JUMPS = "The loss of a diffusion model jumps with the noise level that a step draws; look at the bold curves."


def describe_stage1(run: Run, album: Album) -> Content:
    """Loss curves, and the clean images beside their perturbed twins."""
    rows = run.rows
    charts = stage1_charts(rows)
    whole = curve(rows, "loss", "loss")
    if whole.x:
        charts.insert(0, loss_chart("Loss", [whole], "All terms, weighted (Eq. 7)."))
    config = run.config
    branch = "its one-branch baseline (PGD-2)" if config.get("one_branch") else f"a LoRD of rank {config.get('rank')}"
    return Content(
        "Stage 1: training a LoRD" if not config.get("one_branch") else "Stage 1: training the one-branch baseline",
        f"Clean images were perturbed within eps {config.get('eps')} ({config.get('norm', 'linf')}), and {branch} was "
        f"trained on {config.get('model')} with both: to denoise either, and to tell them apart.",
        _tiles(run),
        [
            *section("Loss", *_losses(rows, charts, ("loss", "ldm_clean", "ldm_perturbed", "detection"))),
            *section("Clean images and their perturbed twins", *_twins(run, album)),
        ],
        notes=_diverged(rows),
    )


def describe_stage2(run: Run, album: Album) -> Content:
    """The loss curve, the instance images and the validation grids."""
    rows, config = run.rows, run.config
    line = curve(rows, "loss", "loss")
    charts = [loss_chart("Loss", [line])] if line.x else []
    folder = run.input("instance_data")
    instance: list[Block] = []
    if folder is not None:
        pictures, total = pictures_of(folder, "instance image", 2 * SHOWN)
        row = album.strip("", pictures)
        if row is not None:
            count = (
                f"{len(row.pictures)} of {counted(total, 'image')}"
                if len(row.pictures) < total
                else counted(total, "image")
            )
            instance = [Paragraph(f"{count} in {config.get('instance_data')}."), Gallery([row], 6, 1)]
    elif config.get("instance_data"):
        instance = [Paragraph(f"The images in {config['instance_data']} are not there any more.")]
    under = f"on top of the frozen LoRD in {config['lord']}" if config.get("lord") else "without a LoRD"
    return Content(
        "Stage 2: training a LoRA",
        f"A LoRA of rank {config.get('rank')} was trained on {config.get('model')} with the prompt "
        f"“{config.get('instance_prompt')}”, {under}.",
        _tiles(run),
        [
            *section("Loss", *_losses(rows, charts, ("loss",))),
            *section("Instance images", *instance),
            *section("Validation", *_validation(run, album)),
        ],
        notes=_diverged(rows),
    )


def total_steps(run: Run) -> int | None:
    """How many steps the run was to take; None where that depends on the data."""
    steps = run.config.get("steps")
    return steps if isinstance(steps, int) and not isinstance(steps, bool) else None


def _tiles(run: Run) -> list[Tile]:
    found = run.summary or {}
    steps = found.get("steps") or max((row["step"] for row in run.rows), default=0)
    losses = [row["loss"] for row in run.rows if is_number(row.get("loss"))]
    examples = [f"of {found['examples']:,} examples"] if is_number(found.get("examples")) else []
    tiles = [Tile("Steps", f"{steps:,}", [*examples, f"batch size {run.config.get('batch_size')}"])]
    if losses:
        tail = losses[-max(1, len(losses) // 10) :]
        head = losses[: len(tail)]
        lines = [f"first tenth {plain(sum(head) / len(head))}"]
        tiles.append(Tile("Loss, last tenth", plain(sum(tail) / len(tail)), lines))
    tiles.append(Tile("Learning rate", str(run.config.get("lr")), [str(run.config.get("lr_schedule", ""))]))
    return [*tiles, *seconds_tile(run, steps, "steps")]


def _losses(rows: Sequence[dict[str, Any]], charts: list[Any], shown: Sequence[str]) -> list[Block]:
    more = metric_charts(rows, shown)
    blocks: list[Block] = [Paragraph(_JUMPS), Charts(charts)] if charts else []
    if more:
        blocks.append(Details("Everything else that was logged", [Charts(more)]))
    return blocks


def _diverged(rows: Sequence[dict[str, Any]]) -> list[str]:
    count = finite_count(rows, "loss")
    return [f"The loss was not a finite number in {counted(count, 'step')}: the training diverged."] if count else []


def _twins(run: Run, album: Album) -> list[Block]:
    """The first examples, cut as training cut them, with their twins and what the perturbation changed."""
    folder, data = _latest(run.path / "perturbed"), run.input("data")
    if folder is None:
        return []
    # Called by the number of their example: where some were given ready-made, there are gaps.
    twins = {int(path.stem): path for path in sorted(folder.glob("*.png"))[:SHOWN] if path.stem.isdecimal()}
    if not twins:
        return []
    if data is None:
        text = f"The clean images in {run.config.get('data')} are not there any more."
        pictures, _ = pictures_of(folder, "perturbed image", 2 * SHOWN)
        row = album.strip("", pictures)
        return [Paragraph(text), Gallery([row], 6, 1)] if row is not None else [Paragraph(text)]
    defaults = {name: getattr(ImageOptions(), name) for name in ("crop", "variants", "skip_bad")}
    options = SimpleNamespace(**{name: run.config.get(name, value) for name, value in defaults.items()})
    pairs = []
    try:
        records = list_images(data, captions="ignore", skip_bad=options.skip_bad)
        after = {number: load_image(path) for number, path in twins.items()}
        height, width = next(iter(after.values())).shape[:2]
        clean = load_images(
            records,
            (height, width),
            crop=options.crop,
            seed=run.config.get("seed", 0),
            variants=options.variants,
            skip_bad=options.skip_bad,
        )
        for number, (record, before) in enumerate(islice(clean, max(after) + 1)):
            if number in after:
                pairs.append((record.name, before, after[number]))
    except (BadImageError, ValueError, OSError) as error:
        return [Note(f"The clean images can't be shown: {error}")]
    factor = factor_for([(before, changed) for _, before, changed in pairs])
    shown = []
    for name, before, changed in pairs:
        change = thumbnail(amplified(before, changed, factor), average=False)
        row = album.row(
            "",
            [
                Picture(thumbnail(before), f"clean image {name}", "clean"),
                Picture(thumbnail(changed), f"perturbed image {name}", "perturbed"),
                Picture(change, f"what changed in {name}", f"change × {factor}"),
            ],
        )
        shown += [row] if row is not None else []
    total = sum(1 for _ in folder.glob("*.png"))
    count = f"{len(shown)} of {total:,}" if len(shown) < total else f"All {total:,}"
    text = f"{count} examples are shown; the change is {factor} times as strong, and grey is no change."
    if folder.name != "perturbed":
        text += f" The twins are those of {folder.name}, the last that were made."
    return [Paragraph(text), Gallery(shown, 3, 3)] if shown else []


def _latest(folder: Path) -> Path | None:
    """Where the twins are: the folder itself, or the last of those that were made as training went on."""
    if not folder.is_dir():
        return None
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and any(path.glob("*.png")))
    return inside[-1] if inside else folder


def _validation(run: Run, album: Album) -> list[Block]:
    paths = sorted((run.path / "validation").glob("step-*.png"))
    if not paths:
        return []
    # From the first to the last, evenly, where there are more than can be looked at.
    count = min(len(paths), SHOWN)
    places = sorted({math.floor(i * (len(paths) - 1) / max(1, count - 1) + 0.5) for i in range(count)})
    rows = []
    for path in (paths[place] for place in places):
        step = int(path.stem.rpartition("-")[2])
        try:
            picture = Picture(thumbnail(load_image(path), 640), f"validation pictures after step {step}")
        except BadImageError:
            continue
        row = album.row(f"After step {step:,}", [picture])
        rows += [row] if row is not None else []
    text = f"Drawn from “{run.config.get('validation_prompt')}”, always from the same noise."
    return [Paragraph(text), Gallery(rows, 1, 2)] if rows else []
