"""``lordfast evaluate``: check everything, measure part by part, write the run folder."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from lordfast.diffusion import LatentDiffusion, load_model
from lordfast.evaluation import parts
from lordfast.evaluation.config import EvaluateConfig, check_request
from lordfast.evaluation.inputs import ImageFolder, open_folder
from lordfast.evaluation.parts import Part, PartResult
from lordfast.evaluation.table import to_markdown
from lordfast.files import write_atomic
from lordfast.training.config import check_choices
from lordfast.training.interrupt import Interrupted
from lordfast.training.run import RunFolder

DISTRIBUTION = "distribution"


@dataclass
class Plan:
    """Checked input, and the parts to run, by name, in order; those of several feature sets end in its number."""

    parts: dict[str, Part]
    skipped: list[str]


def run_evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure what `config` asks for into ``config.out``; returns what summary.json holds.

    The run folder gets metrics.jsonl (a row per kind of features, per pair, per image, and per image and timestep),
    summary.json and table.md. Each finished part is kept in checkpoints/, so that a resumed run does only the others
    and, also where all was finished, those that lacked something. ``summary["distribution"]`` is the entry of the first
    kind of features, with those of all under ``sets``, by name; ``summary["unavailable"]`` says which metrics could not
    be measured, and why.

    Raises:
        ValueError, OSError: nothing to measure, or a folder, image, model or feature module that can't be used;
            nothing is written then.
        Interrupted: on Ctrl-C.
    """
    check_choices(config)
    check_request(config)
    # Without writing: a run folder that can't be used is the first thing to say, and bad input must leave no trace.
    finished = RunFolder.inspect(config, "evaluate")
    if finished is not None and not finished.get("unavailable"):
        return finished
    plan = _plan(config)
    run = RunFolder.open(config, "evaluate")
    # What a finished run lacked is tried again; till then it is unfinished.
    (run.path / "summary.json").unlink(missing_ok=True)
    started = time.perf_counter()
    results: dict[str, PartResult] = {}
    try:
        for name, part in plan.parts.items():
            results[name] = _kept(run, name, part)
    except KeyboardInterrupt:
        raise Interrupted(f"after {len(results)} of {len(plan.parts)} parts") from None
    run.rewind(0)
    rows = [{"part": _part(name), **row} for name, result in results.items() for row in result.rows]
    for step, row in enumerate(rows, start=1):
        run.log({"step": step, **row})
    summary: dict[str, Any] = {}
    for name, result in results.items():
        if _part(name) != DISTRIBUTION:
            summary[name] = result.summary
        else:
            first = summary.setdefault(DISTRIBUTION, {**result.summary, "sets": {}})
            first["sets"][result.summary["features"]] = result.summary
    summary["unavailable"] = {metric: why for result in results.values() for metric, why in result.unavailable.items()}
    summary["skipped"] = plan.skipped
    summary["warnings"] = [text for result in results.values() for text in result.warnings]
    summary["seconds"] = round(time.perf_counter() - started, 2)
    write_atomic(run.path / "table.md", to_markdown(summary))
    return run.finish(summary)


def _part(name: str) -> str:
    """Which part of the summary the part `name` belongs to."""
    return DISTRIBUTION if name.startswith(DISTRIBUTION) else name


def _kept(run: RunFolder, name: str, part: Part) -> PartResult:
    path = run.checkpoints / f"{name}.json"
    if not path.exists():
        result = part()
        content = json.dumps(vars(result))
        if result.unavailable:
            # Not kept: what is missing may be there when the run is resumed.
            return PartResult(**json.loads(content))
        write_atomic(path, content)
    # Read back also when just written, so that a resumed run and an uninterrupted one see the same values.
    return PartResult(**json.loads(path.read_text(encoding="utf-8")))


def _plan(config: EvaluateConfig) -> Plan:
    """Read and check everything that the run needs."""
    plan = Plan({}, [])

    def folder(argument: str, prompt: str | None = None) -> ImageFolder:
        found = open_folder(getattr(config, argument), argument, skip_bad=config.skip_bad, prompt=prompt)
        plan.skipped += found.skipped
        return found

    def model() -> LatentDiffusion:
        return load_model(config.model, device=config.device, dtype=config.dtype)

    generated = folder("generated") if config.generated is not None else None
    reference = folder("reference") if config.reference is not None else None
    gates = None
    if config.clean is not None:
        gates = folder("clean", config.prompt), folder("attacked", config.prompt)
    plain = None
    if gates or (generated and reference and config.distribution and "vae" in config.features):
        plain = model()
    if generated and reference:
        plan.parts |= _between(config, generated, reference, plain)
    if generated and config.clip_model is not None:
        plan.parts["clip"] = parts.plan_clip(config, config.clip_model, generated, reference)
    if gates and plain is not None and config.lord is not None:
        plan.parts["detection"] = parts.plan_detection(config, plain, config.lord, *gates)
    if reference and config.denoises:
        # A model of its own: lambda is tested without the LoRA.
        own = model() if gates or plain is None else plain
        plan.parts["denoising"] = parts.plan_denoising(config, own, reference)
    return plan


def _between(
    config: EvaluateConfig, generated: ImageFolder, reference: ImageFolder, model: LatentDiffusion | None
) -> dict[str, Part]:
    """The parts that compare the generated images with the reference."""
    found: dict[str, Part] = {}
    if config.distribution:
        for i, spec in enumerate(config.features):
            name = f"{DISTRIBUTION}-{i}" if i else DISTRIBUTION
            found[name] = parts.plan_distribution(config, spec, generated, reference, model)
    pairs = parts.plan_pairs(config, generated, reference)
    if pairs is not None:
        found["pairs"] = pairs
    if config.lpips is not None:
        found["lpips"] = parts.plan_lpips(config, config.lpips, generated, reference)
    if config.frequency:
        found["frequency"] = parts.plan_frequency(config, generated, reference)
    if config.dino_model is not None:
        found["dino"] = parts.plan_dino(config, config.dino_model, generated, reference)
    if config.identity is not None:
        found["identity"] = parts.plan_identity(config, config.identity, generated, reference)
    return found
