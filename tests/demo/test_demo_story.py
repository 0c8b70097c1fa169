"""The demo: the whole chain on the embedded model, small enough for a test; mechanics, not who wins."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lordfast.cli.main import main
from lordfast.data import DrawnSubject, list_images, load_image
from lordfast.demo import measures, recipes, story
from lordfast.demo.agreement import identity_of
from lordfast.demo.methods import METHODS, TRAINED
from lordfast.demo.report import METRICS
from lordfast.training.run import RunFolder

STEPS = [
    "attacked",
    *(f"stage2/{name}" for name in TRAINED),
    *(f"{kind}/{name}" for kind in ("generated", "metrics", "denoising") for name in METHODS),
    "metrics/attack",
    "metrics/lambda",
]
TOLD = 3 + 3 * len(METHODS) + len(TRAINED)


def strict(path: Path) -> Any:
    """JSON as the standard has it, which knows no NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in {path}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture(params=["demo", "seeds", "landscape"])
def out(request: pytest.FixtureRequest) -> Path:
    """Each layout in turn."""
    return request.getfixturevalue(request.param)


def test_every_step_leaves_an_ordinary_run(out: Path) -> None:
    summary = strict(out / "summary.json")
    trained = out / "stage1" if summary["lord"] == "trained here" else None
    runs = [out, *([trained] if trained else [])]
    assert sorted(path.name for path in out.glob("seed-*")) == [f"seed-{seed}" for seed in summary["seeds"]]
    for seed in summary["seeds"]:
        here = out / f"seed-{seed}"
        runs += [here / step for step in STEPS]
        for name, method in TRAINED.items():
            lord = str(trained or story.SHIPPED_LORD) if method.with_lord else None
            assert strict(here / "stage2" / name / "summary.json")["lord"] == lord
            config = (here / "stage2" / name / "config.yaml").read_text()
            assert str(here / ("attacked" if method.attacked else "data/clean")) in config
        for name, method in METHODS.items():
            drawn = yaml.safe_load((here / "generated" / name / "config.yaml").read_text())
            stays = method.with_lord and name != "attacked-lord-training"
            assert drawn["lord"] == (str(trained or story.SHIPPED_LORD) if stays else None)
            lora = "attacked-lord" if name == "attacked-lord-training" else name
            assert drawn["lora"] == str(here / "stage2" / lora)
    for run in runs:
        for file in ("config.yaml", "environment.json", "summary.json"):
            assert (run / file).is_file(), f"{run}/{file}"
    assert len(summary["seconds"]) == (trained is not None) + len(summary["seeds"]) * TOLD


def test_a_lord_is_trained_only_when_asked_for(demo: Path, seeds: Path) -> None:
    assert strict(demo / "summary.json")["lord"] == "shipped with the model"
    assert not (demo / "stage1").exists() and not (demo / "others").exists()
    assert strict(seeds / "summary.json")["lord"] == "trained here"
    assert (seeds / "stage1" / "lord.safetensors").is_file()


def test_summary_holds_what_the_steps_measured(out: Path, tiny: recipes.Scale) -> None:
    summary = strict(out / "summary.json")
    for seed, told in summary["stories"].items():
        here = out / f"seed-{seed}"
        assert told["attack"]["images"] == tiny.images
        assert told["damage"]["pairs"]["largest_change"] <= 16
        assert told["detection"] == strict(here / "metrics" / "lambda" / "summary.json")["detection"]
        for name in METHODS:
            measured = strict(here / "metrics" / name / "summary.json")
            found = told["methods"][name]
            assert set(found) == {metric.key for metric in METRICS}
            assert found["frechet_distance"]["value"] == measured["distribution"]["frechet_distance"]
            denoised = strict(here / "denoising" / name / "summary.json")["denoising"]["loss"]
            assert found["denoising_loss"] == {end: denoised[end] for end in ("value", "low", "high")}
            assert found["kernel_distance"]["value"] == measured["distribution"]["kernel_distance"]
            assert found["high_frequencies"]["value"] == measured["frequency"]["generated"]["amplitude"]
            assert 0 <= found["identity_agreement"]["value"] <= 1
            assert all(np.isfinite(measure["value"]) for measure in found.values())


def test_one_seed_keeps_its_intervals_over_images(demo: Path) -> None:
    summary = strict(demo / "summary.json")
    (told,) = summary["stories"].values()
    assert summary["methods"] == told["methods"]
    detection = told["detection"]
    ends = ("auroc", "auroc_low", "auroc_high")
    assert [summary["auroc"][end] for end in ("value", "low", "high")] == [detection[end] for end in ends]


def test_two_seeds_give_the_mean_and_students_interval(seeds: Path) -> None:
    summary = strict(seeds / "summary.json")
    assert summary["seeds"] == [0, 1] and list(summary["stories"]) == ["0", "1"]
    first, second = summary["stories"].values()
    triples = [
        (
            summary["methods"][name][metric.key],
            *(told["methods"][name][metric.key]["value"] for told in (first, second)),
        )
        for name in METHODS
        for metric in METRICS
    ]
    triples.append((summary["auroc"], first["detection"]["auroc"], second["detection"]["auroc"]))
    for found, one, other in triples:
        # Of two values the standard error is half their distance; t(0.975) with one degree of freedom is tan(0.475 pi).
        half = np.tan(0.475 * np.pi) * abs(one - other) / 2
        assert found["value"] == pytest.approx((one + other) / 2, rel=1e-9)
        expected = [(one + other) / 2 - half, (one + other) / 2 + half]
        assert [found["low"], found["high"]] == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert any(one != other for _, one, other in triples)


def test_of_three_values_the_interval_is_the_tables() -> None:
    found = measures.mean_over([{"value": value, "low": None, "high": None} for value in (1.0, 2.0, 6.0)])
    # t(0.975, 2) = 4.3027; the standard deviation is sqrt(7).
    half = 4.30265 * 7**0.5 / 3**0.5
    assert [found["value"], found["low"], found["high"]] == pytest.approx([3, 3 - half, 3 + half], rel=1e-5)


def test_methods_differ_in_what_they_draw(out: Path) -> None:
    drawn = [load_image(out / "seed-0" / "generated" / name / "0000.png") for name in METHODS]
    for i, first in enumerate(drawn):
        for second in drawn[i + 1 :]:
            assert (first != second).any()


def test_methods_share_their_noise_and_seeds_do_not(seeds: Path) -> None:
    def noise(seed: int, method: str) -> list[int]:
        return [row["seed"] for row in RunFolder(seeds / f"seed-{seed}" / "generated" / method).rows()]

    for seed in (0, 1):
        assert len(noise(seed, "clean-lora")) > 1
        assert all(noise(seed, name) == noise(seed, "clean-lora") for name in METHODS)
    assert not set(noise(0, "clean-lora")) & set(noise(1, "clean-lora"))


def test_the_picture_shows_the_files(out: Path) -> None:
    picture = load_image(out / "result.png")
    for seed in out.glob("seed-*"):
        for folder in ("attacked", "generated/clean-lord"):
            doubled = np.kron(load_image(list_images(seed / folder)[0].path), np.ones((2, 2, 1), np.uint8))
            corners = np.argwhere((picture == doubled[0, 0]).all(axis=2))
            found = (picture[y : y + len(doubled), x : x + len(doubled)] for y, x in corners)
            assert any(np.array_equal(window, doubled) for window in found), (seed.name, folder)


def test_reference_pictures_are_other_ones_than_those_trained_on(out: Path, tiny: recipes.Scale) -> None:
    seen = [
        load_image(record.path).tobytes()
        for seed in sorted(out.glob("seed-*"))
        for folder in ("data/clean", "data/reference")
        for record in list_images(seed / folder)
    ]
    assert len(seen) == len(list(out.glob("seed-*"))) * (tiny.images + tiny.reference)
    assert len(set(seen)) == len(seen)


def test_a_landscape_is_one_place(landscape: Path) -> None:
    here = landscape / "seed-0"
    assert strict(landscape / "summary.json")["stories"]["0"]["prompt"] == "a photo of a sks landscape"
    for step in STEPS:
        if step.startswith(("stage2/", "generated/")):
            assert "a photo of a sks landscape" in (here / step / "config.yaml").read_text()
    records = [record for folder in ("clean", "reference") for record in list_images(here / "data" / folder)]
    assert all("landscape" in (record.caption or "") for record in records)


def subject_of(seed: int, **settings: Any) -> DrawnSubject:
    return story.subject_of(story.DemoConfig(**settings), seed)


@pytest.mark.parametrize("landscape", [False, True])
def test_an_identity_is_the_same_for_all_seeds_and_otherwise_each_seed_has_its_own(landscape: bool) -> None:
    def pixels(subject: DrawnSubject, seed: int = 0) -> bytes:
        return subject.draw(1, seed)[0].image.tobytes()

    fixed = [subject_of(seed, identity=5, landscape=landscape) for seed in (0, 1)]
    assert pixels(fixed[0]) == pixels(fixed[1]) != pixels(subject_of(0, identity=6, landscape=landscape))
    assert pixels(fixed[0], 0) != pixels(fixed[0], 1)
    own = [subject_of(seed, landscape=landscape) for seed in (0, 1)]
    assert pixels(own[0]) != pixels(own[1])
    assert pixels(own[0]) == pixels(subject_of(0, landscape=landscape))


@pytest.mark.parametrize("landscape", [False, True])
def test_every_picture_of_a_subject_shows_what_the_agreement_asks_for(landscape: bool) -> None:
    for number in range(8):
        pictures = subject_of(0, identity=number, landscape=landscape).draw(6, 1)
        kept = [identity_of(picture.attributes) for picture in pictures]
        assert all(one == kept[0] for one in kept), number


def test_the_runs_pictures_are_those_of_the_identity(seeds: Path) -> None:
    config = {"identity": 5, "seeds": 2}
    for seed in (0, 1):
        drawn = subject_of(seed, **config).draw(2, story.derive_seed(seed, "clean"))
        for picture, record in zip(drawn, list_images(seeds / f"seed-{seed}" / "data" / "clean"), strict=False):
            assert (load_image(record.path) == picture.image).all()
    assert strict(seeds / "summary.json")["identity"] == 5


def test_resume_of_a_finished_demo_recomputes_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("a finished step ran again")

    for function in ("run_attack", "run_stage1", "run_stage2", "run_generate", "run_evaluate"):
        monkeypatch.setattr(story, function, never)
    assert main(["demo", "--config", str(out / "config.yaml"), "--resume"]) == 0


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def numbers(out: Path) -> dict[str, Any]:
    """The summary without what depends on the clock and on the folder."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items() if "second" not in key}
        return [clean(inner) for inner in value] if isinstance(value, list) else value

    return clean(json.loads((out / "summary.json").read_text().replace(str(out), "OUT")))


def test_an_interrupted_demo_goes_on_where_it_was(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    log = RunFolder.log

    def interrupting(self: RunFolder, row: dict[str, Any]) -> None:
        log(self, row)
        if self.path == out / "seed-0" / "stage2" / "clean-lord":
            os.kill(os.getpid(), signal.SIGINT)

    words = ["demo", "--quick", "--out", str(out), "--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", interrupting)
        assert main(words) == 130
    assert "--resume" in "".join(capsys.readouterr())
    finished = [out / "seed-0" / step for step in ("data", "attacked")]
    finished += [out / "seed-0" / kind / "clean-lora" for kind in ("stage2", "generated", "metrics")]
    before = {path: time for folder in finished for path, time in files(folder).items()}
    assert len(before) > 20 and not (out / "seed-0" / "generated" / "clean-lord").exists()
    assert not (out / "seed-0" / "stage2" / "clean-lord" / "summary.json").exists()
    assert main([*words, "--resume"]) == 0
    assert {path: time for folder in finished for path, time in files(folder).items()} == before
    assert numbers(out) == numbers(demo)
    for name in METHODS:
        for record in list_images(demo / "seed-0" / "generated" / name):
            again = out / "seed-0" / "generated" / name / record.name
            assert (load_image(again) == load_image(record.path)).all()
    assert [row["step"] for row in RunFolder(out).rows()] == list(range(1, TOLD + 1))


@pytest.mark.parametrize(("flag", "value"), [("seeds", "0"), ("seeds", "-2"), ("identity", "-1")])
def test_bad_settings_name_the_argument(
    flag: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", f"--{flag}", value, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"{flag}: expected" in said and value in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("columns", [80, 200])
def test_the_table_has_every_number(
    out: Path, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["demo", "--config", str(out / "config.yaml"), "--resume"]) == 0
    said = capsys.readouterr().out
    summary = strict(out / "summary.json")
    table = said.partition("report.html")[0]
    assert "\u2026" not in table, "cut off"
    words = table.replace("\u2502", " ").replace("\u2503", " ").split()
    for measured in [*(found for method in summary["methods"].values() for found in method.values()), summary["auroc"]]:
        for end in ("value", "low", "high"):
            if measured[end] is not None:
                assert any(word.strip(",") == f"{measured[end]:.3g}" for word in words), (end, measured)
    over = "over seeds" if len(summary["seeds"]) > 1 else "over its images"
    assert over in " ".join(words)
    for name in ("report.html", "result.png", "summary.json"):
        assert str(out / name) in said


def test_scales_grow() -> None:
    for field in recipes.Scale._fields:
        assert getattr(recipes.FULL, field) >= getattr(recipes.QUICK, field)
