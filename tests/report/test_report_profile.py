"""``lordfast profile``: each job on the embedded model leaves its numbers, its trace and its page."""

import gzip
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lordfast.cli.main import main
from lordfast.diffusion import LatentDiffusion
from lordfast.profiling.ceilings import Ceilings, measure_ceilings
from lordfast.profiling.count import Counted, Place, Work
from lordfast.profiling.layers import Layer
from lordfast.profiling.recorder import Plan, Recording
from lordfast.profiling.trace_summary import PhaseTime, Spent, Summary
from lordfast.report import Page, Table, Tiles, render_page
from lordfast.report.profile import JOBS
from lordfast.report.profile import run as profile_run
from lordfast.report.profile.charts import Bar, Point, bar_chart, roofline
from lordfast.report.profile.config import Stage1Profile, Stage2Profile
from lordfast.report.profile.numbers import OUTSIDE, numbers
from lordfast.report.profile.page import profile_page
from lordfast.report.profile.words import number, seconds, share

SHORT = ["--device", "cpu", "--steps", "1", "--warmup", "0", "--batch-size", "1", "--ceiling-seconds", "0.01"]
PHASES = {
    "stage1": {"data", "forward", "forward/predict", "backward", "clip", "optimizer", "read metrics"},
    "stage2": {"data", "forward", "forward/predict", "backward", "clip", "optimizer", "read metrics"},
    "pgd": {"draw", "encode", "loss", "loss/predict", "backward", "check", "step"},
    "generate": {"sample", "decode"},
}
KINDS = {
    "stage1": {("UNet LoRD", "forward"), ("UNet LoRD", "backward"), ("UNet resnet", "backward")},
    "stage2": {("UNet LoRD", "backward"), ("UNet LoRA", "forward"), ("UNet LoRA", "backward")},
    "pgd": {("UNet attention", "backward"), ("VAE encoder resnet", "forward"), ("VAE encoder resnet", "backward")},
    "generate": {("UNet LoRD", "forward"), ("VAE decoder resnet", "forward"), ("text encoder attention", "forward")},
}
MORE = {"generate": ["--sampler-steps", "2"]}


@pytest.fixture(autouse=True)
def _small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_run, "measure_ceilings", partial(measure_ceilings, side=64))


@pytest.fixture(scope="module", params=list(JOBS))
def profiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("profile") / request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile_run, "measure_ceilings", partial(measure_ceilings, side=64))
        assert main(["profile", request.param, "--out", str(out), *SHORT, *MORE.get(request.param, [])]) == 0
    return request.param, out


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "profile.json").read_text())


def test_a_job_names_its_phases_and_layers(profiled: tuple[str, Path]) -> None:
    job, out = profiled
    profile = read(out)
    assert {row["phase"] for row in profile["phases"]} == PHASES[job] | {"outside of the phases"}
    kinds = {(row["kind"], row["pass"]): row for row in profile["kinds"]}
    for key in KINDS[job]:
        row = kinds[key]
        assert row["ms"] > 0 and row["flops"] > 0 and row["bytes"] > 0 and row["launches"] >= row["layers"]
        assert row["gflops"] == pytest.approx(row["flops"] / row["ms"] / 1e6)
        assert row["intensity"] == pytest.approx(row["flops"] / row["bytes"])


def test_parts_of_a_step_add_up(profiled: tuple[str, Path]) -> None:
    profile = read(profiled[1])
    step, model = profile["step"], profile["flops"]
    assert sum(row["own_ms"] for row in profile["phases"]) == pytest.approx(step["wall_ms"])
    assert sum(row["busy_ms"] for row in profile["phases"]) == pytest.approx(step["busy_ms"])
    assert sum(row["flops"] for row in profile["phases"]) == model["model"] + model["recompute"]
    assert sum(row["flops"] for row in profile["kinds"]) == model["model"] + model["recompute"]
    assert sum(row["launches"] for row in profile["kinds"]) == pytest.approx(step["launches"])
    assert sum(row["ms"] for row in profile["kinds"]) == pytest.approx(step["busy_ms"])
    assert sum(row["waits"] for row in profile["phases"]) == step["waits"]
    rate = profile["ceilings"]["gflops"]["fp32"]
    assert profile["mfu"] == pytest.approx(model["model"] / profile["seconds"] / 1e9 / rate)
    assert (model["backward"] > 0) == (profiled[0] != "generate") and model["recompute"] == 0


def test_values_are_read_where_they_are_drawn_or_checked(profiled: tuple[str, Path]) -> None:
    job, out = profiled
    waits = {row["phase"]: row for row in read(out)["waits"]}
    if job == "pgd":
        # The timestep of the one image comes from a generator of the CPU's.
        assert waits["draw"]["per_step"] == 1 and "examples.py" in waits["draw"]["lines"][0]["line"]
        assert waits.keys() == {"draw"}
    elif job in ("stage1", "stage2"):
        assert not {"backward", "optimizer", "clip", "data"} & waits.keys(), "nothing waits between the passes"


def test_the_trace_opens_with_its_phases(profiled: tuple[str, Path]) -> None:
    job, out = profiled
    trace = json.loads(gzip.decompress((out / "trace.json.gz").read_bytes()))
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    assert all({"name", "ts", "dur", "pid", "tid"} <= event.keys() for event in events)
    names = {event["name"] for event in events}
    assert {f"phase:{path.rpartition('/')[2]}" for path in PHASES[job]} <= names and "step:0" in names
    backward = {event["name"].partition("|")[0] for event in events if event.get("cat") == "layers"}
    assert {kind for kind, direction in KINDS[job] if direction == "backward"} <= backward


def test_the_page_holds_everything_and_loads_nothing(profiled: tuple[str, Path]) -> None:
    out = profiled[1]
    text = (out / "profile.html").read_text(encoding="utf-8")
    assert text == render_page(profile_page(read(out))), "the page is made of profile.json alone"
    assert not re.search(r'(?:src|href)="(?!data:|#)', text) and "url(http" not in text
    assert text.count("<svg") >= 3 + 1, "two charts of bars, the roofline, the button"
    for row in read(out)["phases"]:
        assert row["phase"].replace("/", " / ") in text


def test_a_run_leaves_what_every_run_leaves(profiled: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    job, out = profiled
    assert {p.name for p in out.iterdir()} == {
        "config.yaml", "environment.json", "inputs.json",
        "profile.json", "profile.html", "summary.json", "trace.json.gz",
    }  # fmt: skip
    summary, profile = json.loads((out / "summary.json").read_text()), read(out)
    assert summary["seconds_per_step"] == profile["seconds"] and summary["mfu"] == profile["mfu"]
    before = (out / "profile.json").read_bytes()
    assert main(["profile", job, "--config", str(out / "config.yaml"), "--resume"]) == 0
    assert (out / "profile.json").read_bytes() == before, "a finished run is not made again"
    assert str(out / "profile.html") in capsys.readouterr().out


def test_tables_of_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "pgd", "--out", str(tmp_path / "run"), *SHORT, "--low-memory", "--draws", "2"]) == 0
    text = capsys.readouterr().out
    profile = read(tmp_path / "run")
    assert "An attack step:" in text and "1 image of 64 px" in text
    lines = [line for line in text.splitlines() if line.strip().startswith("predict ")]
    assert len(lines) == 1 and number(profile["phases"][3]["wall_ms"]) in lines[0]
    # Two draws, one after the other; the two-pass gradient encodes once more.
    work = {(row["kind"], row["pass"]): row for row in profile["kinds"]}
    assert work["VAE encoder resnet", "forward"]["flops"] == 2 * work["VAE encoder resnet", "backward"]["flops"]


def test_random_weights_of_a_published_architecture(tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ["--accumulate", "2", "--gradient-checkpointing"]
    assert main(["profile", "stage1", "--topology", "sd3-narrow", "--out", str(out), *SHORT, *more]) == 0
    profile = read(out)
    assert profile["images"] == 2 * profile["batch_size"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["images_per_second"] == pytest.approx(profile["images"] / profile["seconds"])
    assert sum(row["flops"] for row in profile["kinds"] if row["pass"] == "recompute") > 0
    assert (profile["model"], profile["weights"], profile["resolution"]) == ("sd3-narrow", "random", 64)
    lord = next(row for row in profile["kinds"] if (row["kind"], row["pass"]) == ("transformer LoRD", "forward"))
    assert lord["layers"] == 4 * 4, "four projections in each of its blocks"


def test_the_lord_of_stage2_is_frozen(demo_model: LatentDiffusion, tmp_path: Path) -> None:
    config = Stage2Profile(out=tmp_path / "run", device="cpu", batch_size=1)
    JOBS["stage2"].prepare(config, demo_model, tmp_path, 4)
    names = [name for name, value in demo_model.unet.named_parameters() if value.requires_grad]
    assert names and all(".lora_" in name for name in names)
    assert any(".lord_A." in name for name, _ in demo_model.unet.named_parameters())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--steps", "0"], "steps: expected at least 1, got 0"),
        (["--rank", "0"], "rank: expected at least 1, got 0"),
        (["--ceiling-seconds", "0"], "ceiling_seconds: expected a positive number"),
        (["--resolution", "63"], "resolution: expected a positive multiple"),
        (["--model", "nowhere"], "model: 'nowhere' does not exist"),
        (["--topology", "sd14"], "topology: expected one of sd15"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "stage1", "--out", str(tmp_path / "run"), "--device", "cpu", *flags]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_jobs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\w", text, re.MULTILINE) for name in JOBS)
    assert main(["profile", "stage3"]) == 2


def test_a_config_belongs_to_its_job(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="pgd takes a PgdProfile, got a Stage1Profile"):
        profile_run.run_profile("pgd", Stage1Profile(out=tmp_path / "run"))


def made_up(on_device: bool) -> dict[str, Any]:
    """A profile by hand: one layer, 2 GFLOP forward in 4 ms, a backward pass with a part computed again."""
    layer = Layer("unet.mid", "UNet attention")
    found = Recording([0.02, 0.02], 0.02, 0.05, {}, Counted(), 2**30 if on_device else None)
    for direction, flops in (("forward", 2 * 10**9), ("backward", 4 * 10**9), ("recompute", 10**9)):
        phases = ("forward",) if direction == "forward" else ("backward",)
        found.counted.work[Place(phases, layer, direction)] = Work(flops, 10**8, 1)  # type: ignore[arg-type]
    found.counted.waits[("log",), "_local_scalar_dense", "a.py:1 f"] = 3
    summary = Summary(2, on_device, wall=50e3, busy=40e3, launches=7)
    summary.phases = {
        (): PhaseTime(wall=50e3, own=1e3),
        ("forward",): PhaseTime(wall=20e3, own=20e3, busy=15e3, device=9e3, launches=3),
        ("backward",): PhaseTime(wall=28e3, own=28e3, busy=20e3, device=18e3, launches=4),
        ("log",): PhaseTime(wall=1e3, own=1e3, waits=1 if on_device else 0),
    }
    summary.layers = {(layer, "forward"): Spent(4e3, 3), (layer, "backward"): Spent(8e3, 4)}
    if on_device:
        summary.waits = {(("log",), "cudaStreamSynchronize in aten::_local_scalar_dense"): 1.0}
    profile = numbers(found, summary, Plan(1, 2, 2), Ceilings(100.0, {"bf16": 1000.0}), "bf16")
    rest = {"job": "stage1", "step_is": "a training step", "model": "sd15", "weights": "random", "batch_size": 2}
    rest |= {"images": 4}
    machine = {"device": "some GPU", "threads": "1", "lordfast": "0", "torch": "0"}
    return {**rest, "resolution": 512, "dtype": "bf16", "machine": machine, **profile}


def tiles(page: Page) -> dict[str, tuple[str, list[str]]]:
    (found,) = [block for block in page.top if isinstance(block, Tiles)]
    return {tile.label: (tile.value, list(tile.lines)) for tile in found.tiles}


@pytest.mark.parametrize("on_device", [True, False])
def test_numbers_of_a_profile_made_up(on_device: bool) -> None:
    profile = made_up(on_device)
    assert profile["mfu"] == pytest.approx(6e9 / 0.02 / 1e12), "what is computed again is no work of the model's"
    forward, backward, again = sorted(
        profile["kinds"], key=lambda row: ["forward", "backward", "recompute"].index(row["pass"])
    )
    assert forward["gflops"] == pytest.approx(500) and forward["intensity"] == 20
    assert forward["of_roof"] == pytest.approx(0.5), "20 FLOPs a byte at 100 GB/s reach 2000, arithmetic ends at 1000"
    assert backward["gbps"] == pytest.approx(12.5) and again["gflops"] is None and again["ms"] == 0
    assert [row["phase"] for row in profile["phases"]][-1] == "outside of the phases"
    assert profile["phases"][-1]["wall_ms"] == 1
    (wait,) = profile["waits"]
    assert wait["lines"] == [{"line": "a.py:1 f", "times": 3}]
    assert wait["per_step"] == (1 if on_device else 3) == profile["step"]["waits"]
    assert [row["waits"] for row in profile["phases"]] == [0, 0, wait["per_step"], 0]
    assert profile["phases"][0]["device_ms"] == (9 if on_device else None)
    assert OUTSIDE not in {row["kind"] for row in profile["kinds"]}


def test_the_page_of_a_gpu_speaks_of_kernels() -> None:
    page = profile_page(made_up(on_device=True))
    found = tiles(page)
    assert found["A training step"] == ("20 ms", ["200 images a second", "at most 1.00 GiB in use"])
    assert found["Of that the GPU works"][0] == "80 %" and found["The host waits"][0] == "1 ×"
    phases = next(block for block in page.sections[0].blocks if isinstance(block, Table))
    assert "GPU ms" in [column.title for column in phases.columns]
    text = render_page(page)
    assert "cudaStreamSynchronize in aten::_local_scalar_dense" in text
    assert "2.50 times the undisturbed one" in text and "2.5 times as long" in text


def test_charts_refuse_what_they_cannot_draw() -> None:
    point = Point("a", "forward", 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="points"):
        roofline([], gbps=1, gflops=1)
    with pytest.raises(ValueError, match="ceilings"):
        roofline([point], gbps=0, gflops=1)
    with pytest.raises(ValueError, match="expected 2 parts in 'a', got 1"):
        bar_chart([Bar("a", [1.0])], ["x", "y"], x_label="")


def test_the_roofline_names_its_kinds_and_ceilings() -> None:
    points = [Point(f"kind {i}", "backward" if i % 2 else "forward", 2.0 + i, 3.0 + i, 1.0) for i in range(8)]
    svg = roofline(points, gbps=123.0, gflops=4567.0)
    assert all(f">kind {i}</text>" in svg for i in range(6)) and "kind 6" not in svg, "six colours"
    assert "4,567 GFLOP/s" in svg and "123 GB/s" in svg and ">forward</text>" in svg and ">backward</text>" in svg


def test_words() -> None:
    assert [number(v) for v in (None, 3.0, 3.14159, 0.0456, 1234.5)] == ["", "3", "3.14", "0.0456", "1234"]
    assert [seconds(v) for v in (2.5, 0.0123, 4.2e-5)] == ["2.50 s", "12.3 ms", "42 µs"]
    assert share(1, 3) == "33 %" and share(1, 0) == ""
