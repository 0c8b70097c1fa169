"""Pages of the commands that measure: evaluate and transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lordfast.report.blocks import Block, Charts, Column, Gallery, Paragraph, PictureRow, Table, Tile
from lordfast.report.gate_charts import lambda_blocks
from lordfast.report.numbers import Measured
from lordfast.report.runs.album import Album, pictures_of
from lordfast.report.runs.common import histogram_chart, seconds_tile
from lordfast.report.runs.content import Content, counted, section
from lordfast.report.runs.read import Run
from lordfast.report.runs.tables import capital, in_words, is_number, measure_blocks, measured_parts, title_of

SHOWN = 8
_TILES = ("frechet_distance", "kernel_distance", "psnr", "ssim", "lpips", "clip_iqa", "clip_t", "dino", "auroc")


def describe_evaluate(run: Run, album: Album) -> Content:
    """Tables of every part with intervals and reasons, lambda as maps, curves and histograms, and the pictures."""
    found = run.summary or {}
    parts = {name: part for name, part in found.items() if isinstance(part, Mapping)}
    tables = [block for name, part in measured_parts(found) for block in measure_blocks(name, part)]
    detection = parts.get("detection")
    tiles = _tiles(parts)
    rows = run.rows
    return Content(
        "Evaluation",
        _story(run),
        [*tiles[:5], *seconds_tile(run)],
        [
            *section("Metrics", *tables),
            *section("Over all images", *_histograms(rows)),
            *section(
                "Lambda: does the gate notice the attack?",
                *(detection_blocks(dict(detection), rows) if detection and "cells" in detection else []),
            ),
            *section("The pictures", *_pictures(run, album)),
        ],
    )


def _story(run: Run) -> str:
    config, said = run.config, []
    if config.get("generated"):
        said.append(f"The images in {config['generated']} were measured against those in {config.get('reference')}.")
    if config.get("lord") and config.get("attacked"):
        said.append(
            f"The gates of the LoRD in {config['lord']} were read on the clean images in {config.get('clean')} and on "
            f"the attacked ones in {config['attacked']}."
        )
    return " ".join(said) or "What was measured stands below, with intervals where there are some."


def _tiles(parts: Mapping[str, Mapping[str, Any]]) -> list[Tile]:
    tiles = []
    for key in _TILES:
        for part in parts.values():
            value = part.get(key)
            if isinstance(value, Mapping):
                measured = Measured.read(dict(value))
            else:
                measured = Measured.read(
                    {"value": value, "low": part.get(f"{key}_low"), "high": part.get(f"{key}_high")}
                )
            if measured is not None:
                text, interval = in_words(measured)
                tiles.append(Tile(title_of(key), text, [interval] if interval else []))
                break
    return tiles


def detection_blocks(detection: dict[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Lambda over layers and timesteps, and, where `rows` hold it per image, how clean and attacked images differ.

    Args:
        detection: the part of an evaluation's summary.
        rows: of its metrics.jsonl: ``set``, ``image``, ``timestep``, ``lambda``.
    """
    found = Measured.read({"value": detection["auroc"], "low": detection["auroc_low"], "high": detection["auroc_high"]})
    assert found is not None
    value, interval = in_words(found)
    around = f" ({interval})" if interval else ""
    text = (
        "In every layer, λ between 0 and 1 decides how much of LoRD’s second branch is added. It should stay shut for "
        "clean images and open for attacked ones. Over all layers and timesteps, an attacked image has the larger λ "
        f"than a clean one in a share of {value}{around} of all pairs (AUROC; 0.5 is chance): "
        f"{counted(detection['clean'], 'clean image')} and {counted(detection['attacked'], 'attacked image')}. The "
        f"means of λ are {detection['lambda_clean']:.3f} and {detection['lambda_attacked']:.3f}."
    )
    maps, curves, layers = lambda_blocks(detection)
    return [Paragraph(text), maps, *_lambda_histograms(rows), curves, layers]


def _lambda_histograms(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    read = [row for row in rows if row.get("set") in ("clean", "attacked") and is_number(row.get("lambda"))]
    timesteps = sorted({row["timestep"] for row in read if is_number(row.get("timestep"))})
    charts = []
    whole = {kind: list(_per_image(read, kind).values()) for kind in ("clean", "attacked")}
    charts.append(
        histogram_chart(
            "λ, mean over timesteps", whole, "λ of an image, mean over layers", "Apart is what a gate needs."
        )
    )
    for timestep in timesteps if len(timesteps) > 1 else []:
        each = {
            kind: [row["lambda"] for row in read if row["set"] == kind and row["timestep"] == timestep]
            for kind in ("clean", "attacked")
        }
        charts.append(histogram_chart(f"λ at timestep {timestep}", each, "λ of an image, mean over layers"))
    drawn = [chart for chart in charts if chart is not None]
    return [Charts(drawn, cards=3)] if drawn else []


def _per_image(rows: Sequence[Mapping[str, Any]], kind: str) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["set"] == kind:
            values.setdefault(str(row.get("image")), []).append(row["lambda"])
    return {name: sum(found) / len(found) for name, found in values.items()}


def _histograms(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Of every number that a part logs per image, apart from lambda."""
    groups: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        if "image" not in row or row.get("part") == "detection":
            continue
        for key, value in row.items():
            if is_number(value) and key not in ("step", "timestep", "ms_ssim_scales"):
                kind = str(row.get("set", "images"))
                groups.setdefault((str(row.get("part", "")), key), {}).setdefault(kind, []).append(value)
    charts = [
        histogram_chart(capital(title_of(key)), found, title_of(key))
        for (_, key), found in groups.items()
        if all(len(values) > 2 for values in found.values())
    ]
    drawn = [chart for chart in charts if chart is not None]
    return [Charts(drawn, cards=3)] if drawn else []


def _pictures(run: Run, album: Album) -> list[Block]:
    rows: list[tuple[str, PictureRow]] = []
    for field in ("generated", "reference", "clean", "attacked"):
        folder = run.input(field)
        if folder is None or folder in [run.input(name) for name, _ in rows]:
            continue
        pictures, total = pictures_of(folder, f"{field} image", SHOWN)
        row = album.strip(field, pictures, f"{len(pictures)} of {total:,}, {run.config[field]}")
        rows += [(field, row)] if row is not None else []
    return [Gallery([row for _, row in rows], 4, 2)] if rows else []


def describe_transfer(run: Run, album: Album) -> Content:
    """The matrix: a table per metric, attacks down and target models across; and the pictures."""
    found = run.summary or {}
    tables, notes = _matrix(found) if found else ([], [])
    rows = []
    for folder in sorted({path.parent for path in (run.path / "outputs").rglob("*.png")}):
        pictures, total = pictures_of(folder, "variation", 4)
        name = str(folder.relative_to(run.path / "outputs"))
        row = album.strip(name, pictures, f"{len(pictures)} of {total:,}")
        rows += [row] if row is not None else []
    images = found.get("images")
    tiles = [Tile("Images", f"{images:,}", [])] if is_number(images) else []
    blocks: list[Block] = [*tables, *(Paragraph(note) for note in notes)]
    return Content(
        "Transfer",
        "Every target model varied each original and its attacked twin from the same noise. The more the two results "
        "differ, the better the attack transfers.",
        [*tiles, *seconds_tile(run)],
        [
            *section("The matrix", *blocks),
            *section("What the target models draw", Gallery(rows, 4, 2) if rows else None),
        ],
    )


def _matrix(found: Mapping[str, Any]) -> tuple[list[Table], list[str]]:
    cells = {(cell["row"], cell["column"]): cell for cell in found["cells"]}
    tables, notes = [], []
    for name, metric in found["metrics"].items():
        columns = [Column(str(column["label"])) for column in found["columns"]]
        body = [
            (row["name"], [Measured.read(cells[row["name"], column["name"]].get(name)) for column in found["columns"]])
            for row in found["rows"]
        ]
        if any(cell is not None for _, line in body for cell in line):
            tables.append(
                Table(metric["title"], columns, body, f"{metric['title']}: {metric['stronger']} = stronger attack")
            )
        else:
            reasons = [cell[name].get("reason") for cell in found["cells"] if isinstance(cell.get(name), Mapping)]
            notes.append(f"{metric['title']} is unavailable: {next(filter(None, reasons), 'no value')}.")
    return tables, notes
