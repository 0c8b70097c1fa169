"""Pages of the commands that make pictures: attack, purify, generate, pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lordfast.data import BadImageError, load_image
from lordfast.report.blocks import Block, Charts, Gallery, Paragraph, Picture, PictureRow, Tile
from lordfast.report.runs.album import Album, Change, changes, pictures_of, thumbnail
from lordfast.report.runs.common import histogram_chart, seconds_tile
from lordfast.report.runs.content import Content, counted, section
from lordfast.report.runs.read import Run
from lordfast.report.runs.tables import is_number, plain

SHOWN = 12
"""Pictures with their originals that a page shows."""

_MEASURED = 500
"""Results whose size is looked up for their PSNR."""


def describe_attack(run: Run, album: Album) -> Content:
    """Originals, attacked images and what changed; how far, and what it did to the loss."""
    found = run.summary or {}
    rows = [row for row in run.rows if "image" in row]
    levels = found.get("eps_grey_levels")
    budget = f"{plain(levels)} grey levels" if is_number(levels) else f"eps {run.config.get('eps')}"
    norm = run.config.get("norm", "linf")
    ratios = [ratio for row in rows[:_MEASURED] if (ratio := _psnr_of(run.path, row)) is not None]
    done = found.get("images", len(rows))
    tiles = [Tile("Images", f"{done:,}", _odd(found)), Tile("Budget", budget, [f"norm {norm}"])]
    if ratios:
        largest = [row["largest_change"] for row in rows]
        lines = [f"largest change {max(largest)} of 255 grey levels"]
        tiles.append(Tile("PSNR, mean", f"{sum(ratios) / len(ratios):.1f} dB", lines))
    if all(is_number(found.get(name)) for name in ("loss_clean", "loss_attacked")):
        losses = f"{plain(found['loss_clean'])} → {plain(found['loss_attacked'])}"
        tiles.append(Tile("The attack’s loss, clean → attacked", losses, ["mean over the images"]))
    tiles += seconds_tile(run)
    story = (
        f"Every pixel of {counted(done, 'image')} was allowed to move by at most {budget} ({norm}), so that "
        f"fine-tuning {run.config.get('model')} on them learns the wrong thing. The attack was {run.name}."
    )
    charts = [
        histogram_chart(
            "The attack’s loss",
            {"clean": _values(rows, "loss_clean"), "attacked": _values(rows, "loss_attacked")},
            "loss of an image",
            "Before and after; a targeted attack lowers it, an untargeted one raises it.",
        ),
        histogram_chart("PSNR", {"images": ratios}, "dB, attacked against original", "Higher is less visible."),
    ]
    drawn = [chart for chart in charts if chart is not None]
    pictures = _twins(run, album, rows, ("original", "attacked"))
    return Content(
        f"Attack {run.name}: {counted(done, 'image')} within {budget}",
        story,
        tiles,
        [*section("The images", *pictures), *section("Over all images", Charts(drawn) if drawn else None)],
    )


def describe_purify(run: Run, album: Album) -> Content:
    """Images before and after, and what changed."""
    found = run.summary or {}
    rows = [row for row in run.rows if "image" in row]
    done = found.get("images", len(rows))
    tiles = [Tile("Images", f"{done:,}", _odd(found))]
    if is_number(found.get("psnr")):
        tiles.append(Tile("PSNR, mean", f"{found['psnr']:.1f} dB", ["against the given images"]))
    tiles += seconds_tile(run, done, "images")
    chart = histogram_chart("PSNR", {"images": _values(rows, "psnr")}, "dB, purified against given")
    pictures = _twins(run, album, rows, ("given", "purified"))
    return Content(
        f"Purify with {run.name}: {counted(done, 'image')}",
        f"{counted(done, 'image')} went through {run.name}, which is to wash an attack out without harming the rest. "
        "The change is that of the purifier: it removes detail of the pictures together with the attack.",
        tiles,
        [*section("The images", *pictures), *section("Over all images", Charts([chart]) if chart else None)],
    )


def describe_generate(run: Run, album: Album) -> Content:
    """The pictures that were drawn."""
    found = run.summary or {}
    prompt = str(run.config.get("prompt", ""))
    pictures, total = pictures_of(run.path, "drawn picture", 4 * SHOWN)
    row = album.strip("", pictures)
    used = [f"{name} {run.config[name]}" for name in ("lord", "lora") if run.config.get(name)]
    tiles = [Tile("Pictures", f"{total:,}", [f"of {run.config.get('n')} asked for"] if run.summary is None else [])]
    tiles += seconds_tile(run, found.get("images"), "pictures")
    text = f"Each picture has a seed of its own, from {run.config.get('seed', 0)} on."
    said = _shown(len(row.pictures) if row is not None else 0, total, "pictures")
    return Content(
        f"{counted(total, 'picture')} of “{prompt}”" if prompt else counted(total, "picture"),
        f"Drawn by {run.config.get('model')}{' with ' + ' and '.join(used) if used else ''}, in "
        f"{run.config.get('steps')} steps at guidance {run.config.get('guidance')}.",
        tiles,
        section("The pictures", Paragraph(f"{text} {said}".strip()), Gallery([row], 4, 1)) if row is not None else [],
    )


def describe_pairs(run: Run, album: Album) -> Content:
    """The pictures of each pair beside each other."""
    rows = [row for row in run.rows if "source" in row]
    shown = [made for row in rows[:SHOWN] if (made := _pair(run.path, row, album)) is not None]
    images = (run.summary or {}).get("images", len({row["source"] for row in rows}))
    tiles = [
        Tile("Pairs", f"{len(rows):,}", [f"of {counted(images, 'image')}"]),
        *seconds_tile(run, len(rows), "pairs"),
    ]
    blocks: list[Block] = []
    if shown:
        blocks = [Paragraph(_shown(len(shown), len(rows), "pairs")), Gallery(shown, len(shown[0].pictures), 3)]
    shares = histogram_chart("Masked share", {"pairs": _values(rows, "share")}, "of the image")
    return Content(
        f"{counted(len(rows), 'pair')} for {run.name}",
        "What is drawn for a pair depends on the seed, the image’s name and the variant alone.",
        tiles,
        [*section("The pairs", *blocks), *section("Over all pairs", Charts([shares]) if shares else None)],
    )


def _pair(folder: Path, row: dict[str, Any], album: Album) -> PictureRow | None:
    """The pictures that a row of pairs names: its values that are images of the run."""
    pictures = []
    for field, value in row.items():
        if not isinstance(value, str) or not value.endswith(".png") or field == "source":
            continue
        try:
            image = thumbnail(load_image(folder / value))
        except BadImageError:
            return None
        pictures.append(Picture(image, f"{field} of {row['source']}", field.replace("file_name", "image")))
    caption = row.get("text")
    return album.row(str(row["source"]), pictures, str(caption) if caption else "") if pictures else None


def _twins(run: Run, album: Album, rows: Sequence[dict[str, Any]], words: tuple[str, str]) -> list[Block]:
    """The gallery of a run that made ``output`` of ``image`` of its config's ``images``."""
    if not rows:
        if run.rows:
            return [Paragraph("The results lie in archives; this page shows none of their pictures.")]
        return []
    folder = run.input("images")
    if folder is None:
        pictures, total = pictures_of(run.path, f"{words[1]} image", 4 * SHOWN)
        row = album.strip("", pictures)
        text = (
            f"The {words[0]} images in {run.config.get('images')} are not there any more: these are the results alone. "
            f"{_shown(len(pictures), total, 'images')}"
        )
        return [Paragraph(text), *([Gallery([row], 4, 1)] if row is not None else [])]
    pairs = [
        Change(folder / row["image"], run.path / row["output"], row["image"])
        for row in sorted(rows, key=lambda row: str(row["image"]))[:SHOWN]
    ]
    gallery, factor, missing = changes(album, pairs, words)
    shown = len(gallery.rows) if gallery is not None else 0
    text = (
        f"Each picture before and after, and what changed, {factor} times as strong (grey is no change). "
        f"{_shown(shown, len(rows), 'images')}"
    )
    blocks: list[Block] = [Paragraph(text.strip())]
    blocks += [gallery] if gallery is not None else []
    if missing:
        blocks.append(Paragraph(f"Not shown: {'; '.join(missing)}."))
    return blocks


def _shown(shown: int, total: int, what: str) -> str:
    return "" if shown >= total else f"{shown:,} of {total:,} {what} are shown."


def _odd(found: dict[str, Any]) -> list[str]:
    return [
        f"{found[name]:,} {name}" for name in ("skipped", "unchanged") if is_number(found.get(name)) and found[name]
    ]


def _values(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if is_number(row.get(key))]


def _psnr_of(folder: Path, row: dict[str, Any]) -> float | None:
    """From the L2 norm of all changes in [0, 1] pixels: 10 log10(N / norm^2) for N values of colour."""
    norm = row.get("l2_change")
    if not is_number(norm) or not norm:
        return None
    try:
        with Image.open(folder / str(row["output"])) as image:
            count = 3 * image.width * image.height
    except OSError:
        return None
    return 10 * float(np.log10(count / norm**2))
