"""A study from its settings to its tables."""

from __future__ import annotations

from typing import Any

from lordfast.data import ImageRecord
from lordfast.diffusion import load_model
from lordfast.evaluation.experiments.grid import Status
from lordfast.evaluation.experiments.page import check_page, fill_page
from lordfast.evaluation.experiments.start import check_features, compute, open_grid, overview
from lordfast.evaluation.experiments.study.cells import StudyCells
from lordfast.evaluation.experiments.study.charts import write_charts
from lordfast.evaluation.experiments.study.config import StudyConfig
from lordfast.evaluation.experiments.study.design import Design
from lordfast.evaluation.experiments.study.latex import to_latex
from lordfast.evaluation.experiments.study.outcomes import columns, gate_rows, table_rows
from lordfast.evaluation.experiments.study.reading import design
from lordfast.evaluation.experiments.study.tables import to_csv, to_markdown
from lordfast.evaluation.experiments.subjects import list_subjects
from lordfast.files import write_atomic
from lordfast.training.run import write_json


def run_study(config: StudyConfig, name: str) -> dict[str, Any]:
    """Compute what is missing in ``config.out`` and write the tables; returns what results.json holds.

    Failed cells don't stop the others; ``failed`` in the result names them.

    Args:
        name: of the experiment, as in ``lordfast experiment NAME``.

    Raises:
        ValueError, OSError: settings, data, a model or features that can't be used, or a folder that holds something
            else, or cells with other settings; nothing is written then.
        Interrupted: on Ctrl-C, with the tables of what is there.
    """
    plan = design(config)
    if config.page is not None:
        check_page(config.page)
    subjects = _subjects(plan)
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    side = model.check_resolution(config.resolution)
    if config.draw:
        # What can't be measured here is reported as such; the rest of the study is not in vain.
        check_features(plan.features, model, side, weights=plan.evaluate.get("inception_weights"), lack=True)
    cells = StudyCells(plan, subjects, side)
    run, grid = open_grid(config, f"experiment {name}", cells.all, grows=True)

    def write(status: Status) -> dict[str, Any]:
        results = summarise(cells, name, status)
        write_json(run.path / "results.json", results)
        for file, content in {"md": to_markdown, "csv": to_csv, "tex": to_latex}.items():
            write_atomic(run.path / f"table.{file}", content(results))
        return results

    def finish(results: dict[str, Any]) -> None:
        write_charts(results, run.path)
        if config.page is not None:
            fill_page(config.page, to_markdown(results))

    return compute(config, run, grid, write, finish)


def _subjects(plan: Design) -> dict[str, dict[str, list[ImageRecord]]]:
    config = plan.config
    found = {}
    for dataset in plan.datasets:
        if dataset.folder is not None:
            try:
                found[dataset.name] = list_subjects(
                    dataset.folder, config.identities, config.images, config.first_identity
                )
            except (ValueError, OSError) as error:
                raise type(error)(f"datasets: {dataset.name}: {error}") from error
    return found


def summarise(cells: StudyCells, name: str, status: Status) -> dict[str, Any]:
    """What results.json holds of a study that may be half finished."""
    plan, config = cells.design, cells.config
    rows = table_rows(cells, status.done)
    gates = gate_rows(cells, status.done)
    reasons = {entry.get("unavailable") for row in rows for entry in row["measures"].values()}
    first = config.first_identity
    return {
        "experiment": name,
        "kind": "study",
        **overview(status),
        "model": config.model,
        "recipe": config.recipe,
        "datasets": [dataset.name for dataset in plan.datasets],
        "attacks": {attack: {"attack": kind, **options} for attack, (kind, options) in plan.attacks.items()},
        "methods": [method.name for method in plan.methods],
        "identities": list(range(first, first + config.identities)),
        "seeds": config.seeds,
        "per_dataset": config.identities * config.seeds,
        "replicates": len(plan.datasets) * config.identities * config.seeds,
        "columns": columns(cells, rows),
        "rows": rows,
        "gates": gates,
        "pictures": _pictures(cells, status),
        "unavailable": sorted(reason for reason in reasons if reason),
    }


def _pictures(cells: StudyCells, status: Status) -> list[dict[str, Any]]:
    """Where the pictures of the first replicate of every dataset lie, below the experiment's folder."""
    found = []
    for dataset in cells.design.datasets:
        one = cells.replicates[dataset.name][0]
        for exposure in cells.design.exposures(dataset):
            methods = {m.name: cells.drawn(one, exposure, m) for m in cells.design.of(exposure) if cells.config.draw}
            attacked = cells.attacked(one, exposure) if exposure.attack is not None else None
            found.append(
                {
                    "dataset": dataset.name,
                    "exposure": exposure.title,
                    "original": f"cells/{one.name}/data/train",
                    "attacked": f"cells/{attacked}/attacked" if attacked in status.done else None,
                    "generated": {m: f"cells/{cell}/generated" for m, cell in methods.items() if cell in status.done},
                }
            )
    return found
