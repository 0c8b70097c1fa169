"""The demo: the whole chain on the embedded model, small enough for a test; mechanics, not who wins."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from lordfast.cli.main import main
from lordfast.data import list_images, load_image
from lordfast.demo import story


def test_every_step_leaves_an_ordinary_run(demo: Path) -> None:
    runs = [
        "attacked",
        "stage1",
        *(f"{kind}/{m}" for kind in ("stage2", "generated", "metrics") for m in story.METHODS),
    ]
    for run in (".", *runs, "metrics/attack", "metrics/lambda"):
        for file in ("config.yaml", "environment.json", "summary.json"):
            assert (demo / run / file).is_file(), f"{run}/{file}"
    assert (demo / "stage1" / "lord.safetensors").is_file()
    for name, (images, with_lord) in story.METHODS.items():
        summary = json.loads((demo / "stage2" / name / "summary.json").read_text())
        assert summary["lord"] == (str(demo / "stage1") if with_lord else None)
        config = (demo / "stage2" / name / "config.yaml").read_text()
        assert str(demo / ("data/clean" if images == "clean" else "attacked")) in config


def test_summary_holds_what_the_steps_measured(demo: Path, tiny: story._Scale) -> None:
    summary = json.loads((demo / "summary.json").read_text())
    assert summary["attack"]["images"] == tiny.images
    for name in story.METHODS:
        assert summary["generated"][name] == json.loads((demo / "metrics" / name / "summary.json").read_text())
        assert np.isfinite(summary["generated"][name]["distribution"]["frechet_distance"])
    assert 0 <= summary["detection"]["detection"]["auroc"] <= 1
    assert summary["attack_damage"]["pairs"]["largest_change"] <= 16
    assert len(summary["seconds"]) == 4 + 3 * len(story.METHODS)


def test_methods_differ_in_what_they_draw(demo: Path) -> None:
    drawn = [load_image(demo / "generated" / name / "0000.png") for name in story.METHODS]
    for i, first in enumerate(drawn):
        for second in drawn[i + 1 :]:
            assert (first != second).any()


def test_the_picture_shows_the_files(demo: Path) -> None:
    picture = load_image(demo / "result.png")
    doubled = np.kron(load_image(list_images(demo / "attacked")[0].path), np.ones((2, 2, 1), np.uint8))
    windows = np.lib.stride_tricks.sliding_window_view(picture, doubled.shape)[:, :, 0]
    assert (windows[:, :, ::16, ::16] == doubled[::16, ::16]).all(axis=(2, 3, 4)).any()


def test_resume_of_a_finished_demo_recomputes_nothing(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("a finished step ran again")

    for function in ("run_attack", "run_stage1", "run_stage2", "run_generate", "run_evaluate"):
        monkeypatch.setattr(story, function, never)
    assert main(["demo", "--quick", "--out", str(demo), "--device", "cpu", "--resume"]) == 0


def test_the_same_seed_gives_the_same_pictures_and_another_seed_other_ones(
    demo: Path, tmp_path: Path, tiny: story._Scale
) -> None:
    for seed in (0, 1):
        story._draw_data(tmp_path / str(seed) / "clean", tmp_path / str(seed) / "others", tiny, seed)
    for record in list_images(demo / "data" / "clean"):
        again, other = (load_image(tmp_path / seed / "clean" / record.name) for seed in ("0", "1"))
        assert (load_image(record.path) == again).all()
        assert (again != other).any()


def test_scales_grow() -> None:
    for field in dataclasses.fields(story._Scale):
        assert getattr(story.FULL, field.name) >= getattr(story.QUICK, field.name)
