"""Whole evaluations: the run folder, its reproducibility, and bad input, which leaves no trace."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lordfast
from lordfast.cli.main import main
from lordfast.data import load_image, save_png
from lordfast.data.images import load_fitted
from lordfast.diffusion import LatentDiffusion
from lordfast.evaluation import EvaluateConfig, run_evaluate
from lordfast.evaluation import evaluate as module
from lordfast.evaluation.parts import PartResult
from lordfast.training.interrupt import Interrupted

MODULE = """
import torch

class Quadrants(torch.nn.Module):
    def forward(self, images):
        assert images.dtype == torch.uint8
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 1).flatten(1)
"""
COLOURS = "lordfast_test_quadrants:Quadrants"


@pytest.fixture(autouse=True)
def _quadrants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lordfast_test_quadrants.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def attacked(faces: Path, tmp_path: Path) -> Path:
    """The faces with 6 grey levels of noise, under the same names, without captions."""
    rng = np.random.default_rng(0)
    for path in sorted(faces.glob("*.png")):
        image = load_image(path)
        noisy = np.clip(image + rng.choice([-6, 6], image.shape), 0, 255).astype(np.uint8)
        save_png(noisy, tmp_path / "attacked" / path.name)
    return tmp_path / "attacked"


@pytest.fixture
def lord(demo_model: LatentDiffusion, tmp_path: Path) -> Path:
    """A saved LoRD with random gates."""
    config = lordfast.LordConfig(r=2, lord_alpha=16, target_modules=["to_q", "to_v"], gate_hidden=4)
    demo_model.unet.add_adapter(config, adapter_name="lord")
    generator = torch.Generator().manual_seed(1)
    for name, parameter in demo_model.unet.named_parameters():
        if "lord_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    lordfast.save_lord(demo_model.unet, tmp_path / "lord")
    return tmp_path / "lord"


def settings(tmp_path: Path, **changes: Any) -> EvaluateConfig:
    return EvaluateConfig(**{"out": tmp_path / "out", "device": "cpu", "features": COLOURS} | changes)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_time(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key != "seconds"}


def test_a_run_of_all_parts(faces: Path, attacked: Path, lord: Path, tmp_path: Path) -> None:
    config = settings(
        tmp_path,
        generated=attacked,
        reference=faces,
        features="vae",
        lord=lord,
        clean=faces,
        attacked=attacked,
        timesteps=(20, 500),
        batch_size=3,
    )
    summary = run_evaluate(config)
    files = {path.name for path in config.out.iterdir()}
    assert files >= {"config.yaml", "environment.json", "metrics.jsonl", "summary.json", "table.md"}
    assert summary == json.loads((config.out / "summary.json").read_text())

    distances = summary["distribution"]
    assert (distances["generated"], distances["reference"], distances["features"]) == (4, 4, "vae")
    assert (distances["kid_subset_size"], distances["kid_subsets"], distances["resolution"]) == (4, 1, 64)
    assert distances["frechet_distance"] > 0
    for name in ("frechet_distance", "kernel_distance"):
        assert distances[f"{name}_low"] <= distances[name] < distances[f"{name}_high"]
    assert sum("singular" in text for text in summary["warnings"]) == 2
    assert sum("not independent" in text for text in summary["warnings"]) == 1

    pairs = [row for row in rows_of(config.out) if row["part"] == "pairs"]
    assert [row["image"] for row in pairs] == [f"0000{i}.png" for i in range(4)]
    assert summary["pairs"]["largest_change"] == 6
    assert summary["pairs"]["psnr"] == pytest.approx(np.mean([row["psnr"] for row in pairs]))

    frequency = summary["frequency"]
    spectra = [row for row in rows_of(config.out) if row["part"] == "frequency"]
    assert [row["set"] for row in spectra] == ["generated"] * 4 + ["reference"] * 4
    for name in ("generated", "reference"):
        mean = np.mean([row["amplitude"] for row in spectra if row["set"] == name])
        assert frequency[name]["amplitude"] == pytest.approx(mean)
    # The noise that was added is all that differs.
    assert frequency["generated"]["amplitude"] > frequency["reference"]["amplitude"] + 0.1

    found = summary["detection"]
    assert (found["clean"], found["attacked"], found["twins"]) == (4, 4, 4)
    gates = [row for row in rows_of(config.out) if row["part"] == "detection"]
    # Of each image a row per timestep and one over them.
    assert [row["timestep"] for row in gates] == [20, 500, None] * 8
    for name in ("logit", "lambda"):
        for first, second, pooled in zip(*[iter(row[name] for row in gates)] * 3, strict=True):
            assert pooled == pytest.approx((first + second) / 2)
    assert 0 <= found["auroc_low"] < found["auroc_high"] <= 1
    assert found["auroc_low"] <= found["auroc"] <= found["auroc_high"]
    mean = np.mean([row["lambda"] for row in gates if row["set"] == "attacked" and row["timestep"] == 500])
    assert found["timesteps"][1]["lambda_attacked"] == pytest.approx(mean)
    # A row for the distances, a pair, an image, and an image at a timestep and over all.
    assert [row["step"] for row in rows_of(config.out)] == list(range(1, 1 + 1 + 4 + 8 + 24))
    assert rows_of(config.out)[0] == {"step": 1, "part": "distribution", **distances["sets"]["vae"]}
    assert distances == {**distances["sets"]["vae"], "sets": distances["sets"]}
    table = (config.out / "table.md").read_text()
    assert "| Frechet distance |" in table and "| PSNR, mean (dB) |" in table and "* the covariance of" in table
    assert table.count("transformer_blocks") == len(found["layers"])


def test_copies_are_indistinguishable_though_only_one_side_has_captions(
    faces: Path, lord: Path, tmp_path: Path
) -> None:
    for path in faces.glob("*.png"):
        save_png(load_image(path), tmp_path / "copies" / path.name)
    summary = run_evaluate(settings(tmp_path, lord=lord, clean=faces, attacked=tmp_path / "copies", timesteps=(100,)))
    assert summary["detection"]["auroc"] == 0.5
    assert all(layer["auroc"] == 0.5 for layer in summary["detection"]["layers"])
    assert "distribution" not in summary and "pairs" not in summary


def test_images_without_a_twin_are_announced(faces: Path, attacked: Path, lord: Path, tmp_path: Path) -> None:
    (attacked / "00000.png").rename(attacked / "stranger.png")
    summary = run_evaluate(settings(tmp_path, lord=lord, clean=faces, attacked=attacked, timesteps=(100,)))
    assert summary["detection"]["twins"] == 3
    assert any("2 of 8 images have no twin" in text for text in summary["warnings"])


def test_a_photograph_meets_its_attacked_centre_crop(photos: Path, tmp_path: Path) -> None:
    for name in ("china.jpg", "portrait.jpg"):
        crop = load_fitted(photos / name, 64)
        save_png((crop // 2 + 60).astype(np.uint8), tmp_path / "ours" / f"{Path(name).stem}.png")
    save_png(np.zeros((32, 48, 3), np.uint8), tmp_path / "ours" / "nobody.png")
    config = settings(tmp_path, generated=tmp_path / "ours", reference=photos, distribution=False, frequency=False)
    summary = run_evaluate(config)
    assert [row["reference"] for row in rows_of(config.out)] == ["china.jpg", "portrait.jpg"]
    for row in rows_of(config.out):
        crop = load_fitted(photos / row["reference"], 64).astype(int)
        assert row["largest_change"] == np.abs(crop // 2 + 60 - crop).max()
    assert summary["pairs"]["pairs"] == 2
    assert summary["pairs"]["unmatched_generated"] == ["nobody.png"]
    assert "flower.png" in summary["pairs"]["unmatched_reference"]
    assert "distribution" not in summary


def test_images_of_all_sizes_are_compared_as_sets(photos: Path, faces: Path, tmp_path: Path) -> None:
    summary = run_evaluate(settings(tmp_path, generated=faces, reference=photos, resolution=24, paired="auto"))
    assert (summary["distribution"]["generated"], summary["distribution"]["reference"]) == (4, 9)
    assert summary["distribution"]["resolution"] == 24
    assert (summary["distribution"]["kid_subset_size"], summary["distribution"]["kid_subsets"]) == (4, 100)
    assert "pairs" not in summary


def test_the_default_resolution_is_the_generated_images(photos: Path, tmp_path: Path) -> None:
    for i in range(2):
        save_png(np.full((40, 56, 3), 9 * i, np.uint8), tmp_path / "ours" / f"{i}.png")
    summary = run_evaluate(settings(tmp_path, generated=tmp_path / "ours", reference=photos))
    assert summary["distribution"]["resolution"] == 40


def test_the_seed_decides_the_subsets(photos: Path, faces: Path, tmp_path: Path) -> None:
    def run(name: str, seed: int) -> dict[str, Any]:
        config = settings(tmp_path, out=tmp_path / name, generated=faces, reference=photos, seed=seed, kid_subsets=5)
        return without_time(run_evaluate(config))

    assert run("a", 1) == run("b", 1)
    one, other = run("c", 2), run("d", 1)
    assert one["distribution"]["kernel_distance"] != other["distribution"]["kernel_distance"]
    assert one["distribution"]["frechet_distance_high"] != other["distribution"]["frechet_distance_high"]
    assert one["frequency"]["generated"]["share_low"] != other["frequency"]["generated"]["share_low"]


def test_without_resamples_there_are_no_intervals(faces: Path, attacked: Path, tmp_path: Path) -> None:
    summary = run_evaluate(settings(tmp_path, generated=attacked, reference=faces, resamples=0))
    assert summary["distribution"]["frechet_distance_low"] is summary["distribution"]["kernel_distance_high"] is None
    assert summary["frequency"]["generated"]["share_high"] is None
    assert summary["frequency"]["generated"]["share"] > 0


def test_the_frequencies_alone(faces: Path, photos: Path, tmp_path: Path) -> None:
    summary = run_evaluate(settings(tmp_path, generated=faces, reference=photos, distribution=False))
    assert "distribution" not in summary and "pairs" not in summary
    assert (summary["frequency"]["generated"]["images"], summary["frequency"]["reference"]["images"]) == (4, 9)
    assert "| generated: share of the power |" in (tmp_path / "out" / "table.md").read_text()


def test_images_too_small_for_frequencies_are_announced(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    Image.new("RGB", (5, 20)).save(tmp_path / "tiny" / "a.png")
    config = settings(tmp_path, generated=tmp_path / "tiny", reference=faces, distribution=False)
    summary = run_evaluate(config)
    assert list(summary["frequency"]) == ["reference"]
    assert "1 generated images are too small to have frequencies" in summary["warnings"]


def test_an_interrupted_run_goes_on_with_the_missing_part(
    faces: Path, attacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_evaluate(settings(tmp_path, out=tmp_path / "whole", generated=attacked, reference=faces))
    config = settings(tmp_path, generated=attacked, reference=faces)

    def interrupted(*args: Any) -> Any:
        def run() -> PartResult:
            raise KeyboardInterrupt

        return run

    with monkeypatch.context() as patch:
        patch.setattr(module.parts, "plan_pairs", interrupted)
        with pytest.raises(Interrupted, match="after 1 of 3 parts"):
            run_evaluate(config)
    assert not (config.out / "summary.json").exists()

    # As if it had been killed while it wrote its rows.
    (config.out / "metrics.jsonl").write_text('{"step": 1, "part": "pairs"}\n{"step": 2, "pa')

    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the finished part ran again")

    monkeypatch.setattr("lordfast.evaluation.parts.sets.compare", forbidden)
    config.resume = True
    assert without_time(run_evaluate(config)) == without_time(whole)
    assert rows_of(config.out) == rows_of(tmp_path / "whole")
    # A finished run is not measured again.
    monkeypatch.setattr(module, "_plan", forbidden)
    assert without_time(run_evaluate(config)) == without_time(whole)


def test_bad_images_stop_the_run_or_are_named(faces: Path, attacked: Path, tmp_path: Path) -> None:
    (attacked / "00001.png").write_bytes(b"no image")
    config = settings(tmp_path, generated=attacked, reference=faces)
    with pytest.raises(ValueError, match=r"cannot read image .*00001\.png"):
        run_evaluate(config)
    assert not config.out.exists()
    config.skip_bad = True
    summary = run_evaluate(config)
    assert summary["skipped"] == [str(attacked / "00001.png")]
    assert summary["distribution"]["generated"] == 3 and summary["pairs"]["pairs"] == 3
    assert summary["pairs"]["unmatched_reference"] == ["00001.png"]


PATHS = ("generated", "reference", "lord", "clean", "attacked")

BAD = {
    "nothing": ({}, "nothing to measure: give --generated"),
    "half": ({"generated": "faces"}, "reference: --generated needs --reference too"),
    "gates": ({"lord": "faces", "clean": "faces"}, "attacked: --lord and --clean needs --attacked too"),
    "missing": ({"generated": "faces", "reference": "nowhere"}, "reference: image folder nowhere does not exist"),
    "empty": ({"generated": "empty", "reference": "faces"}, "generated: no images in empty"),
    "file": ({"generated": "faces/00000.png", "reference": "faces"}, "generated: expected a folder of images"),
    "features": ({"generated": "faces", "reference": "faces", "features": "clip"}, "features: 'clip' is unknown"),
    "shape": (
        {"generated": "faces", "reference": "faces", "features": "torch.nn:Identity"},
        r"features: expected an output of shape \(1, F\)",
    ),
    "unmatched": (
        {"generated": "faces", "reference": "photographs", "paired": "on"},
        "paired: no image in faces has the name of one in photographs",
    ),
    "nothing left": (
        {"generated": "faces", "reference": "other", "distribution": False, "frequency": False},
        "paired: no image in faces",
    ),
    "off": (
        {"generated": "faces", "reference": "faces", "paired": "off", "distribution": False, "frequency": False},
        "distribution, paired, frequency: all are off",
    ),
    "resamples": ({"generated": "faces", "reference": "faces", "resamples": 20}, "resamples: expected 0 or at least"),
    "single": ({"generated": "other", "reference": "faces"}, "generated: distances between sets need at least 2"),
    "batch": ({"generated": "faces", "reference": "faces", "batch_size": 0}, "batch_size: expected at least 1, got 0"),
    "subsets": ({"generated": "faces", "reference": "faces", "kid_subset_size": 1}, "kid_subset_size: expected at"),
    "side": ({"generated": "faces", "reference": "faces", "resolution": 0}, "resolution: expected a positive"),
    "lord": ({"lord": "empty", "clean": "faces", "attacked": "faces"}, "no LoRD adapter at empty"),
    "time": (
        {"lord": "empty", "clean": "faces", "attacked": "faces", "timesteps": (1000,)},
        r"timesteps: expected different integers from 0 to 999, got \[1000\]",
    ),
    "vae side": (
        {"generated": "faces", "reference": "faces", "features": "vae", "resolution": 50},
        "resolution: expected a positive multiple of",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained_and_nothing_is_written(
    faces: Path, tmp_path: Path, demo_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(module, "load_model", lambda *args, **kwargs: demo_model)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "other" / "else.png")
    (tmp_path / "photographs").mkdir()
    for name in "ab":
        Image.new("RGB", (20, 20)).save(tmp_path / "photographs" / f"{name}.png")
    changes, message = BAD[case]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, OSError), match=message):
        run_evaluate(settings(tmp_path, **{k: Path(v) if k in PATHS else v for k, v in changes.items()}))
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in str(path)) == before


def test_a_used_run_folder_is_refused_first_and_overwritten_on_demand(faces: Path, tmp_path: Path) -> None:
    config = settings(tmp_path, generated=faces, reference=faces)
    run_evaluate(config)
    config.reference = Path("nowhere")
    with pytest.raises(ValueError, match="holds a run already"):
        run_evaluate(config)
    config.overwrite = True
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_evaluate(config)
    assert (config.out / "summary.json").exists()
    config.reference, config.paired = faces, "off"
    assert "pairs" not in run_evaluate(config)


def test_the_command_prints_tables_and_warnings(
    faces: Path, attacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ["--generated", str(attacked), "--reference", str(faces), "--device", "cpu"]
    assert main(["evaluate", *flags, "--features", COLOURS, "--out", str(out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in ("Frechet distance", "kernel distance (KID)", "1 of 4 images", "PSNR, mean (dB)", "warning:"):
        assert text in printed
    summary = json.loads((out / "summary.json").read_text())
    # The stored settings run it again.
    assert main(["evaluate", "--config", str(out / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    assert without_time(json.loads((tmp_path / "again" / "summary.json").read_text())) == without_time(summary)
    capsys.readouterr()
    assert main(["evaluate", "--out", str(tmp_path / "none")]) == 2
    assert "error: nothing to measure" in capsys.readouterr().err
