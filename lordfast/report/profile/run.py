"""Run a job under observation, and write what was found."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from lordfast.files import write_atomic
from lordfast.profiling.ceilings import measure_ceilings
from lordfast.profiling.layers import find_layers
from lordfast.profiling.machine import DTYPES, describe
from lordfast.profiling.recorder import Plan, record
from lordfast.profiling.trace_events import read_events
from lordfast.profiling.trace_layers import add_backward_layers
from lordfast.profiling.trace_summary import summarize_trace
from lordfast.report.page import write_page
from lordfast.report.profile.config import ProfileConfig, check
from lordfast.report.profile.jobs import JOBS
from lordfast.report.profile.model import open_model, parts_of
from lordfast.report.profile.numbers import numbers
from lordfast.report.profile.page import profile_page
from lordfast.report.profile.terminal import print_profile
from lordfast.training.progress import progress
from lordfast.training.run import RunFolder, write_json


def run_profile(name: str, config: ProfileConfig, console: Console | None = None) -> dict[str, Any]:
    """Profile the job `name` into ``config.out``; returns what summary.json holds.

    Writes profile.json, every number; trace.json.gz, for Perfetto or chrome://tracing; and profile.html.

    Raises:
        ValueError: an unknown job, bad settings; nothing is written then.
        TypeError: a config of another job.
    """
    if name not in JOBS:
        raise ValueError(f"job: expected one of {', '.join(JOBS)}, got {name!r}")
    job = JOBS[name]
    if type(config) is not job.config:
        raise TypeError(f"config: {name} takes a {job.config.__name__}, got a {type(config).__name__}")
    check(config)
    command = f"profile {name}"
    finished = RunFolder.inspect(config, command)
    if finished is not None:
        return finished
    model = open_model(config)
    plan = Plan(config.warmup, config.steps, config.steps)
    with tempfile.TemporaryDirectory() as folder:
        loop = job.prepare(config, model, Path(folder), plan.total)
    run = RunFolder.open(config, command)
    layers = find_layers(parts_of(model))
    with (
        progress(f"profiling {name}", plan.total) as advance,
        record(plan, layers, model.device, nvtx_backward=config.nvtx_backward, on_step=advance) as recorder,
    ):
        loop(recorder.step)
    found = recorder.found
    timeline = read_events(found.trace)
    ceilings = measure_ceilings(model.device, {config.dtype: DTYPES[config.dtype]}, seconds=config.ceiling_seconds)
    profile = {
        "job": name,
        "step_is": job.step,
        "model": config.topology or config.model,
        "weights": "random" if config.topology else "trained",
        "batch_size": config.batch_size,
        "images": config.batch_size * getattr(config, "accumulate", 1),
        "resolution": model.check_resolution(config.resolution),
        "dtype": config.dtype,
        "machine": describe(model.device),
        **numbers(found, summarize_trace(timeline, gaps=8), plan, ceilings, config.dtype),
    }
    add_backward_layers(found.trace, timeline)
    write_json(run.path / "profile.json", profile)
    write_atomic(run.path / "trace.json.gz", gzip.compress(json.dumps(found.trace).encode(), mtime=0))
    write_page(profile_page(profile), run.path / "profile.html")
    print_profile(profile, console or Console())
    step = profile["step"]
    return run.finish(
        {
            "job": name,
            "seconds_per_step": profile["seconds"],
            "images_per_second": profile["images"] / profile["seconds"],
            "mfu": profile["mfu"],
            "busy": step["busy_ms"] / step["wall_ms"],
            "launches": step["launches"],
            "waits": step["waits"],
        }
    )
