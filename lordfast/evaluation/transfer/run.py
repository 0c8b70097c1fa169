"""``lordfast transfer``: vary the images column by column, measure, write the matrix."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lordfast.data import load_image
from lordfast.diffusion import TensorCache
from lordfast.evaluation.transfer.cells import clip_score, measure_cell
from lordfast.evaluation.transfer.chart import write_chart
from lordfast.evaluation.transfer.config import Column, TransferConfig, check_request
from lordfast.evaluation.transfer.matrix import assemble
from lordfast.evaluation.transfer.pictures import write_pictures
from lordfast.evaluation.transfer.plan import Plan, make_plan
from lordfast.evaluation.transfer.table import to_csv, to_markdown
from lordfast.evaluation.transfer.twins import Row
from lordfast.evaluation.transfer.variation import draw_outputs, outputs_folder, prompt_of
from lordfast.files import write_atomic
from lordfast.training.examples import report_cut
from lordfast.training.interrupt import Interrupted, StopOnSignal
from lordfast.training.progress import progress
from lordfast.training.run import RunFolder, write_json

Cells = dict[tuple[str, str], dict[str, Any]]


def run_transfer(config: TransferConfig) -> dict[str, Any]:
    """Measure how the attacked images of `config` transfer; returns what summary.json holds.

    The run folder gets matrix.json, matrix.md, matrix.csv, matrix.png, pictures.png, every output as
    outputs/COLUMN/ROW/NAME.png, and metrics.jsonl with a row per image and cell. Finished outputs and cells are kept,
    so that a resumed run does only the others and ends in the same bits.

    Raises:
        ValueError, OSError: a folder, image, model or feature module that can't be used, settings out of range, or
            images that changed since an interrupted run began; nothing is written then.
        Interrupted: on Ctrl-C, with every finished batch and cell saved.
    """
    check_request(config)
    finished = RunFolder.inspect(config, "transfer")
    if finished is not None:
        return finished
    plan = make_plan(config)
    run = RunFolder.open(config, "transfer")
    started = time.perf_counter()
    matrix = assemble(
        [plan.twins.description(row) for row in plan.twins.rows],
        plan.columns,
        _fill(run, plan, config),
        without_clip=plan.without_clip,
        features=config.features,
        resamples=config.resamples,
        seed=config.seed,
    )
    matrix["warnings"] = plan.twins.warnings + matrix["warnings"]
    write_json(run.path / "matrix.json", matrix)
    write_atomic(run.path / "matrix.md", to_markdown(matrix))
    write_atomic(run.path / "matrix.csv", to_csv(matrix))
    write_chart(matrix, run.path / "matrix.png")
    if config.pictures:
        write_pictures(plan.twins, plan.columns, run.path, config.pictures)
    counted = {"images": len(plan.twins), "skipped": plan.twins.skipped}
    return run.finish({**counted, **matrix, "seconds": round(time.perf_counter() - started, 2)})


def _fill(run: RunFolder, plan: Plan, config: TransferConfig) -> Cells:
    """Every cell, measured now or by an earlier session."""
    cells = _kept(run, plan)
    run.keep(lambda row: (row.get("row"), row.get("column")) in cells)
    images, rows = len(plan.twins), plan.twins.rows
    cache = TensorCache(config.cache_dir)
    total, done = images * len(plan.columns) * (2 * len(rows) + 1), 0
    with StopOnSignal() as stop, progress("transfer", total) as advance:

        def tick(count: int, note: str) -> None:
            nonlocal done
            done += count
            advance(count, note)
            if stop.requested and done < total:
                raise Interrupted(f"after {done} of {total} steps")

        for number, column in enumerate(plan.columns):
            prompts = [prompt_of(column, plan.twins, i) for i in range(images)]
            if any(prompts) and not all((row.name, column.key) in cells for row in rows):
                report_cut(plan.models(column.model), prompts)
            for row in (None, *rows):
                draw_outputs(
                    partial(plan.models, column.model),
                    column,
                    plan.twins,
                    row,
                    plan.sides[column.model],
                    plan.variation,
                    outputs_folder(run.path, column, row),
                    batch_size=config.batch_size,
                    cache=cache,
                    on_batch=partial(tick, note=f"{column.label}, {'originals' if row is None else row.name}"),
                )
            missing = [row for row in rows if (row.name, column.key) not in cells]
            tick(images * (len(rows) - len(missing)), "")
            for row, cell in zip(missing, _measure(run, plan, column, missing), strict=True):
                first = (number * len(rows) + rows.index(row)) * images + 1
                for i, image in enumerate(cell["rows"]):
                    run.log({"step": first + i, "row": row.name, "column": column.key, **image})
                # After its rows: a cell that is kept has them.
                write_json(_path(run, row, column), cell)
                # Read back, so that a resumed run and an uninterrupted one see the same values.
                cells[row.name, column.key] = json.loads(_path(run, row, column).read_text(encoding="utf-8"))
                tick(images, f"{column.label}, {row.name}")
    return cells


def _measure(run: RunFolder, plan: Plan, column: Column, rows: list[Row]) -> Iterator[dict[str, Any]]:
    """The cells of `rows` in `column`; what they share, the originals' outputs, is looked at once."""
    if not rows:
        return
    twins, measures = plan.twins, plan.measures
    originals = [outputs_folder(run.path, column, None) / name for name in twins.names]
    prompts = [prompt_of(column, twins, i) for i in range(len(twins))]
    reference = measures.extract(originals)
    before = [
        clip_score(measures.clip, load_image(path), prompt) for path, prompt in zip(originals, prompts, strict=True)
    ]
    for row in rows:
        attacked = [outputs_folder(run.path, column, row) / name for name in twins.names]
        cell = measure_cell(measures, twins.names, originals, attacked, prompts, reference, before)
        yield {"with_clip": measures.clip is not None, **cell}


def _path(run: RunFolder, row: Row, column: Column) -> Path:
    return run.checkpoints / column.key / f"{row.name}.json"


def _kept(run: RunFolder, plan: Plan) -> Cells:
    """What an earlier session measured, with CLIP scores if there are some now, and without if not."""
    found = {}
    for column in plan.columns:
        for row in plan.twins.rows:
            path = _path(run, row, column)
            cell = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
            if cell is not None and cell["with_clip"] == (plan.measures.clip is not None):
                found[row.name, column.key] = cell
    return found
