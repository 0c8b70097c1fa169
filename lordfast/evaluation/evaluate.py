"""``lordfast evaluate``: check everything, measure part by part, write the run folder."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from lordfast.diffusion import load_model
from lordfast.evaluation.config import EvaluateConfig, check_request
from lordfast.evaluation.inputs import ImageFolder, open_folder
from lordfast.evaluation.parts import Part, PartResult, plan_detection, plan_distribution, plan_frequency, plan_pairs
from lordfast.evaluation.table import to_markdown
from lordfast.files import write_atomic
from lordfast.training.config import check_choices
from lordfast.training.interrupt import Interrupted
from lordfast.training.run import RunFolder


@dataclass
class Plan:
    """Checked input, and the parts to run, by name, in order."""

    parts: dict[str, Part]
    skipped: list[str]


def run_evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure what `config` asks for into ``config.out``; returns what summary.json holds.

    The run folder gets metrics.jsonl (a row for the distances, per pair, per image, and per image and timestep),
    summary.json and table.md. Each finished part is kept in checkpoints/, so that a resumed run does only the others.

    Raises:
        ValueError, OSError: nothing to measure, or a folder, image, model or feature module that can't be used;
            nothing is written then.
        Interrupted: on Ctrl-C.
    """
    check_choices(config)
    check_request(config)
    # Without writing: a run folder that can't be used is the first thing to say, and bad input must leave no trace.
    finished = RunFolder.inspect(config, "evaluate")
    if finished is not None:
        return finished
    plan = _plan(config)
    run = RunFolder.open(config, "evaluate")
    started = time.perf_counter()
    results: dict[str, PartResult] = {}
    try:
        for name, part in plan.parts.items():
            results[name] = _kept(run, name, part)
    except KeyboardInterrupt:
        raise Interrupted(f"after {len(results)} of {len(plan.parts)} parts") from None
    run.rewind(0)
    rows = [{"part": name, **row} for name, result in results.items() for row in result.rows]
    for step, row in enumerate(rows, start=1):
        run.log({"step": step, **row})
    summary: dict[str, Any] = {name: result.summary for name, result in results.items()}
    summary["skipped"] = plan.skipped
    summary["warnings"] = [text for result in results.values() for text in result.warnings]
    summary["seconds"] = round(time.perf_counter() - started, 2)
    write_atomic(run.path / "table.md", to_markdown(summary).encode())
    return run.finish(summary)


def _kept(run: RunFolder, name: str, part: Part) -> PartResult:
    path = run.checkpoints / f"{name}.json"
    if not path.exists():
        result = part()
        write_atomic(path, json.dumps(vars(result)).encode())
    # Read back also when just written, so that a resumed run and an uninterrupted one see the same values.
    return PartResult(**json.loads(path.read_text(encoding="utf-8")))


def _plan(config: EvaluateConfig) -> Plan:
    """Read and check everything that the run needs."""
    plan = Plan({}, [])

    def folder(argument: str, prompt: str | None = None) -> ImageFolder:
        found = open_folder(getattr(config, argument), argument, skip_bad=config.skip_bad, prompt=prompt)
        plan.skipped += found.skipped
        return found

    sets = (folder("generated"), folder("reference")) if config.generated is not None else None
    gates = (folder("clean", config.prompt), folder("attacked", config.prompt)) if config.lord is not None else None
    model = None
    if gates or (sets and config.distribution and config.features == "vae"):
        model = load_model(config.model, device=config.device, dtype=config.dtype)
    if sets and config.distribution:
        plan.parts["distribution"] = plan_distribution(config, *sets, model)
    pairs = plan_pairs(config, *sets) if sets else None
    if pairs is not None:
        plan.parts["pairs"] = pairs
    if sets and config.frequency:
        plan.parts["frequency"] = plan_frequency(config, *sets)
    if gates and model is not None and config.lord is not None:
        plan.parts["detection"] = plan_detection(config, model, config.lord, *gates)
    return plan
