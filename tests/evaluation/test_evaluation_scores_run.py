"""Whole evaluations with what needs weights: entries, tables, what is missing, and what is not done twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lordfast.cli.main import main
from lordfast.data import load_image, make_faces, save_png
from lordfast.evaluation import EvaluateConfig, run_evaluate
from lordfast.evaluation.clip import QUALITY, Clip, clip_iqa
from lordfast.evaluation.dino import Dino

MODULE = """
import torch

class Colours(torch.nn.Module):
    def forward(self, images):
        return images.float().mean(dim=(2, 3))

class Corners(torch.nn.Module):
    cache_key = "1"
    calls = []
    def forward(self, images):
        self.calls.append(len(images))
        return images[:, :, 0, 0].float()

def faces():
    return lambda image: None if image[0, 0, 0] > 250 else [1.0, 2.0]
"""
COLOURS, CORNERS = "lordfast_test_scores:Colours", "lordfast_test_scores:Corners"


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lordfast_test_scores.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """5 generated faces, of which 3 have a caption, and 4 others to compare them with."""
    for i, face in enumerate(make_faces(9, seed=3)):
        name = "generated" if i < 5 else "reference"
        save_png(face.image, tmp_path / name / f"{name}{i}.png")
        if i in (0, 2, 3):
            (tmp_path / name / f"{name}{i}.txt").write_text(face.caption)
    return {name: tmp_path / name for name in ("generated", "reference")}


def settings(tmp_path: Path, **changes: Any) -> EvaluateConfig:
    common = {"out": tmp_path / "run", "device": "cpu", "cache_dir": tmp_path / "cache", "features": COLOURS}
    return EvaluateConfig(**{**common, "frequency": False, "resamples": 100, **changes})


def rows_of(folder: Path, part: str) -> list[dict[str, Any]]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["part"] == part]


def test_what_clip_and_dino_say(clip_folder: Path, dino_folder: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    config = settings(
        tmp_path, **folders, clip_model=str(clip_folder), dino_model=str(dino_folder), iqa_subject="landscape"
    )
    summary = run_evaluate(config)
    pictures = {name: [load_image(path) for path in sorted(folder.glob("*.png"))] for name, folder in folders.items()}
    clip, found, rows = Clip(str(clip_folder)), summary["clip"], rows_of(config.out, "clip")
    ours, theirs = (clip.images(images) for images in pictures.values())

    prompts = [text.format("landscape") for text in QUALITY]
    assert found["clip_iqa"]["prompts"] == prompts
    quality = clip_iqa(ours, *clip.texts(prompts))
    assert [row["clip_iqa"] for row in rows] == pytest.approx(quality.tolist(), abs=1e-4)
    assert found["clip_iqa"]["value"] == pytest.approx(float(quality.mean()), abs=1e-4)

    close = ours @ theirs.T
    assert [row["clip_i"] for row in rows] == pytest.approx(close.mean(dim=1).tolist(), abs=1e-5)
    assert found["clip_i"]["value"] == pytest.approx(float(close.mean()), abs=1e-5)

    told = {i: (folders["generated"] / f"generated{i}.txt").read_text() for i in (0, 2, 3)}
    expected = {i: float(ours[i] @ clip.texts([text])[0]) for i, text in told.items()}
    assert [row["clip_t"] for row in rows] == [
        pytest.approx(expected[i], abs=1e-5) if i in told else None for i in range(5)
    ]
    assert found["clip_t"]["value"] == pytest.approx(np.mean(list(expected.values())), abs=1e-5)
    assert (found["clip_t"]["images"], found["clip_t"]["without_prompt"]) == (3, 2)

    dino = Dino(str(dino_folder))
    close = dino.images(pictures["generated"]) @ dino.images(pictures["reference"]).T
    assert summary["dino"]["dino"]["value"] == pytest.approx(float(close.mean()), abs=1e-5)
    assert [row["dino"] for row in rows_of(config.out, "dino")] == pytest.approx(close.mean(dim=1).tolist(), abs=1e-5)
    for entry in (*(found[name] for name in ("clip_iqa", "clip_i", "clip_t")), summary["dino"]["dino"]):
        assert entry["low"] < entry["value"] < entry["high"]
    assert summary["unavailable"] == {}


def test_one_prompt_for_all_and_no_reference(clip_folder: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    generated = folders["generated"]
    summary = run_evaluate(
        settings(tmp_path, generated=generated, clip_model=str(clip_folder), clip_prompt="a mountain", frequency=True)
    )
    clip = Clip(str(clip_folder))
    ours = clip.images([load_image(path) for path in sorted(generated.glob("*.png"))])
    assert summary["clip"]["clip_t"]["value"] == pytest.approx(
        float((ours @ clip.texts(["a mountain"])[0]).mean()), abs=1e-5
    )
    assert summary["clip"]["clip_i"] == {"unavailable": "no --reference was given"}
    assert set(summary) == {"clip", "unavailable", "skipped", "warnings", "seconds"}
    for path in generated.glob("*.txt"):
        path.unlink()
    mute = run_evaluate(settings(tmp_path, generated=generated, clip_model=str(clip_folder), out=tmp_path / "mute"))
    assert mute["clip"]["clip_t"]["unavailable"].startswith("no prompt was given (--clip-prompt)")
    assert all("clip_t" not in row for row in rows_of(tmp_path / "mute", "clip"))


def test_several_features_each_with_its_distances(folders: dict[str, Path], tmp_path: Path) -> None:
    both = run_evaluate(settings(tmp_path, **folders, features=(COLOURS, CORNERS)))
    found = both["distribution"]
    assert list(found["sets"]) == [COLOURS, CORNERS]
    assert {**found["sets"][COLOURS], "sets": found["sets"]} == found, "the first where callers look for it"
    for i, spec in enumerate((COLOURS, CORNERS)):
        alone = run_evaluate(settings(tmp_path, **folders, features=spec, out=tmp_path / f"{i}"))
        assert alone["distribution"]["sets"] == {spec: found["sets"][spec]}
    distances = [entry["frechet_distance"] for entry in found["sets"].values()]
    assert distances[0] != distances[1]
    assert [row["features"] for row in rows_of(tmp_path / "run", "distribution")] == [COLOURS, CORNERS]
    table = (tmp_path / "run" / "table.md").read_text()
    assert all(f"Distances on {spec} features" in table for spec in (COLOURS, CORNERS))


def test_distances_on_inception_are_called_fid_and_kid(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small(torch.nn.Module):
        cache_key = "small"

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean(dim=(2, 3)) / 100

    asked = []
    monkeypatch.setattr("lordfast.evaluation.features.load_inception", lambda weights: asked.append(weights) or Small())
    summary = run_evaluate(
        settings(tmp_path, **folders, features=("inception", COLOURS), inception_weights=tmp_path / "w.pth")
    )
    assert asked == [tmp_path / "w.pth"]
    entry, other = summary["distribution"]["sets"]["inception"], summary["distribution"]["sets"][COLOURS]
    for short, name in (("fid", "frechet_distance"), ("kid", "kernel_distance")):
        for end in ("", "_low", "_high"):
            assert entry[f"{short}{end}"] == entry[f"{name}{end}"] is not None
        assert short not in other
    table = (tmp_path / "run" / "table.md").read_text()
    assert "| FID |" in table and "| KID |" in table and "| Frechet distance |" in table


def test_what_is_missing_is_reported_and_the_rest_is_measured(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--{name}={path}" for name, path in folders.items()]
    flags += ["--features", "inception", COLOURS, "--inception-weights=nowhere.pth", "--clip-model=no-clip"]
    flags += ["--dino-model=no-dino", "--lpips=alex", "--identity=lordfast_test_scores:faces", "--device=cpu"]
    assert main(["evaluate", *flags, "--out", "run", "--cache-dir", "cache"]) == 0
    told = capsys.readouterr()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    missing = summary["unavailable"]
    assert set(missing) == {"inception features", "clip_iqa", "clip_i", "clip_t", "dino", "lpips"}
    assert missing["clip_i"].startswith("clip: no-clip can't be loaded: ")
    assert missing["lpips"] == "no generated image has the name of a reference image"
    assert "unavailable: clip_iqa, clip_i, clip_t: clip: no-clip can't be loaded" in told.err
    assert "unavailable: inception features: inception: nowhere.pth can't be read" in told.err
    assert told.out.count("unavailable") == 6, "one set of features and five scores"
    assert summary["distribution"]["unavailable"] == missing["inception features"]
    assert summary["distribution"]["sets"][COLOURS]["frechet_distance"] > 0
    assert summary["clip"]["clip_t"] == {"unavailable": missing["clip_t"]}
    assert summary["identity"]["ism"]["value"] == pytest.approx(1)
    table = (tmp_path / "run" / "table.md").read_text()
    assert "* unavailable: dino: dino: no-dino can't be loaded" in table
    assert "| CLIP-T, cosine with the prompt (higher is closer) | unavailable | - |" in table


def test_what_was_missing_is_measured_when_the_run_goes_on(
    clip_folder: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tmp_path, **folders, clip_model=str(tmp_path / "clip"), clip_prompt="hair")
    first = run_evaluate(config)
    assert "unavailable" in first["clip"]["clip_iqa"]
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {"distribution.json"}
    shutil.copytree(clip_folder, tmp_path / "clip")
    monkeypatch.setattr("lordfast.evaluation.parts.sets.compare", lambda *args, **options: pytest.fail("done already"))
    config.resume = True
    again = run_evaluate(config)
    assert again["clip"]["clip_iqa"]["value"] > 0 and again["unavailable"] == {}
    assert again["distribution"] == first["distribution"]
    # Nothing is missing any more, so nothing is looked at again.
    monkeypatch.setattr(Clip, "images", lambda *args: pytest.fail("done already"))
    assert run_evaluate(config) == again
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == again


def test_a_second_evaluation_computes_only_what_is_new(
    clip_folder: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    images = Clip.images
    monkeypatch.setattr(Clip, "images", lambda self, chunk: seen.append(len(chunk)) or images(self, chunk))
    import lordfast_test_scores as scores

    scores.Corners.calls.clear()
    options: dict[str, Any] = {"features": CORNERS, "clip_model": str(clip_folder), "clip_prompt": "hair"}
    first = run_evaluate(settings(tmp_path, **folders, **options))
    # Of the features also the first image alone, to see whether the module takes it.
    assert seen == [5, 4] and scores.Corners.calls == [1, 5, 4]
    again = run_evaluate(settings(tmp_path, **folders, **options, out=tmp_path / "again"))
    assert seen == [5, 4] and scores.Corners.calls == [1, 5, 4, 1]
    for part in ("distribution", "clip"):
        assert again[part] == first[part]
    save_png(make_faces(1, seed=99)[0].image, folders["generated"] / "new.png")
    run_evaluate(settings(tmp_path, **folders, **options, out=tmp_path / "more"))
    assert seen == [5, 4, 1] and scores.Corners.calls[4:] == [1, 1]


def test_preprocessing_decides_what_is_found_on_disk_and_the_place_does_not(clip_folder: Path, tmp_path: Path) -> None:
    key = Clip(str(clip_folder)).cache_key
    shutil.copytree(clip_folder, tmp_path / "other")
    assert Clip(str(tmp_path / "other")).cache_key == key
    config = tmp_path / "other" / "preprocessor_config.json"
    config.write_text(config.read_text().replace("0.4", "0.45"))
    assert Clip(str(tmp_path / "other")).cache_key != key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dino_model": "x", "clip_model": "y"}, "reference: --dino-model needs --reference too"),
        ({"identity": "x", "clip_model": "y"}, "reference: --identity needs --reference too"),
        ({"paired": "on", "clip_model": "y"}, "reference: --paired needs --reference too"),
        ({}, "reference: --generated needs --reference too"),
        *(
            ({"generated": None, "reference": Path("reference"), "denoising": True, name: value}, message)
            for name, value, message in (
                ("identity", "x", "generated: --identity needs --generated too"),
                ("dino_model", "x", "generated: --dino-model needs --generated too"),
                ("clip_model", "x", "generated: --clip-model needs --generated too"),
                ("lpips", "alex", "generated: --lpips needs --generated too"),
                ("paired", "on", "generated: --paired needs --generated too"),
                ("lord_lambda", "0.5", "lord_lambda: 0.5 was given without lord"),
                ("lord_lambda", "1.5", "lord_lambda: expected gate, or a number from 0 to 1, got '1.5'"),
            )
        ),
        ({"lpips": "big", "reference": Path("reference")}, "lpips: expected one of alex, vgg, squeeze, got 'big'"),
        ({"identity": "x", "reference": Path("reference")}, "identity: 'x' is unknown; expected 'insightface'"),
        ({"features": (COLOURS, COLOURS), "reference": Path("reference")}, "features: expected different ones"),
        ({"features": (), "reference": Path("reference")}, "features: expected different ones, at least one"),
    ],
)
def test_bad_requests(folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_evaluate(settings(tmp_path, **{"generated": folders["generated"], **changes}))
    assert not (tmp_path / "run").exists()
