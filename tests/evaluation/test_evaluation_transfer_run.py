"""Whole transfers on the embedded model and a second one made from it: outputs, cells, resumption, bad input."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lordfast.cli.main import main
from lordfast.data import load_image, make_faces, save_png
from lordfast.diffusion import resolve_model
from lordfast.evaluation import frechet_distance
from lordfast.evaluation.features import extract
from lordfast.evaluation.pairs import compare_pair
from lordfast.evaluation.transfer import TransferConfig, run_transfer, variation
from lordfast.evaluation.transfer import plan as plan_module
from lordfast.evaluation.transfer import run as run_module
from lordfast.training.interrupt import Interrupted

PROMPTS = ("a photo of a person", "a photo of a landscape")
NAMES = ("00000.png", "00001.png", "sub/c.png")


class Colours(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 1).flatten(1)


COLOURS = "lordfast_test_colours:Colours"


@pytest.fixture(autouse=True)
def _colours(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("lordfast_test_colours")
    module.Colours = Colours  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three captioned faces in originals/ and same/, with 6 grey levels of noise in noise/; a model in other/."""
    from diffusers import UNet2DConditionModel

    root = tmp_path_factory.mktemp("transfer")
    rng = np.random.default_rng(0)
    for face, name in zip(make_faces(3, seed=7), NAMES, strict=True):
        save_png(face.image, root / "originals" / name)
        (root / "originals" / name).with_suffix(".txt").write_text(face.caption)
        save_png(face.image, root / "same" / name)
        noise = rng.choice([-6, 6], face.image.shape)
        save_png(np.clip(face.image + noise, 0, 255).astype(np.uint8), root / "noise" / name)
    demo = Path(resolve_model("demo"))
    (root / "other").mkdir()
    for part in demo.iterdir():
        if part.name != "unet":
            (root / "other" / part.name).symlink_to(part)
    unet = UNet2DConditionModel.from_pretrained(demo / "unet", torch_dtype=torch.float16)
    generator = torch.Generator().manual_seed(0)
    for parameter in unet.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator).half() * 0.02
    unet.save_pretrained(root / "other" / "unet")
    return root


@pytest.fixture(scope="module")
def build(here: Path) -> Callable[..., TransferConfig]:
    def make(out: Path, **changes: Any) -> TransferConfig:
        settings: dict[str, Any] = {
            "originals": here / "originals",
            "attacked": (f"noise={here / 'noise'}",),
            "to": ("demo", str(here / "other")),
            "device": "cpu",
            "strength": 0.4,
            "steps": 2,
            "guidance": 2.0,
            "batch_size": 2,
            "features": COLOURS,
            "resamples": 100,
            "pictures": 2,
        }
        return TransferConfig(out=out, **(settings | changes))

    return make


@pytest.fixture(scope="module")
def whole(build: Callable[..., TransferConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted, and the noise, starts and texts of its calls."""
    import sys
    import types

    out = tmp_path_factory.mktemp("runs") / "whole"
    calls: list[dict[str, Any]] = []
    edit = variation.noise_and_denoise

    def spied(model: Any, latents: Any, noise: torch.Tensor, text: Any, **options: Any) -> Any:
        # The models in the order of their columns, and before them nothing.
        calls.append({"noise": noise.clone(), "text": text["encoder_hidden_states"].clone(), **options})
        return edit(model, latents, noise, text, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variation, "noise_and_denoise", spied)
        module = types.ModuleType("lordfast_test_colours")
        module.Colours = Colours  # type: ignore[attr-defined]
        patch.setitem(sys.modules, module.__name__, module)
        run_transfer(build(out, prompts=PROMPTS, attacked=(f"noise={build(out).originals.parent / 'noise'}",)))
    torch.save(calls, out.parent / "calls.pt")
    return out


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rows_of(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return sorted(found, key=lambda row: row["step"])


def outputs(run: Path, column: str, row: str) -> list[np.ndarray]:
    return [load_image(run / "outputs" / column / row / name) for name in NAMES]


def test_the_run_folder_is_complete(whole: Path) -> None:
    files = {"config.yaml", "environment.json", "inputs.json", "metrics.jsonl", "summary.json"}
    files |= {"matrix.json", "matrix.md", "matrix.csv"}
    assert {path.name for path in whole.iterdir()} >= files | {"matrix.png", "pictures.png"}
    matrix, summary = read(whole / "matrix.json"), read(whole / "summary.json")
    assert {key: summary[key] for key in matrix} == matrix
    assert (summary["images"], summary["skipped"]) == (3, [])
    assert [row["name"] for row in matrix["rows"]] == ["noise", "random-signs"]
    assert [row["largest_change"] for row in matrix["rows"]] == [6, 6]
    columns = ["demo/prompt-1", "demo/prompt-2", "other/prompt-1", "other/prompt-2"]
    assert [column["name"] for column in matrix["columns"]] == columns
    assert [column["prompt"] for column in matrix["columns"]] == [*PROMPTS, *PROMPTS]
    pngs = {str(path.relative_to(whole / "outputs")) for path in (whole / "outputs").rglob("*.png")}
    assert pngs == {f"{c}/{r}/{n}" for c in columns for r in ("original", "noise", "random-signs") for n in NAMES}
    with Image.open(whole / "matrix.png") as chart, Image.open(whole / "pictures.png") as pictures:
        assert min(chart.size) > 300 and pictures.height > 6 * 128 and pictures.width > 5 * 128


def test_all_versions_of_an_image_meet_the_same_noise_and_their_column_s_text(whole: Path) -> None:
    calls = torch.load(whole.parent / "calls.pt")
    assert len(calls) == 4 * 3 * 2  # columns, versions, batches of 2 and 1
    for batch in (0, 1):
        noises = [call["noise"] for call in calls[batch::2]]
        assert all(torch.equal(noise, noises[0]) for noise in noises)
    first = calls[0]["noise"]
    assert not torch.equal(first[0], first[1]) and abs(float(first.std()) - 1) < 0.1
    texts = [calls[6 * column]["text"] for column in range(4)]
    assert torch.equal(texts[0], texts[2]) and not torch.equal(texts[0], texts[1])
    assert {(call["start"], call["steps"], call["guidance"]) for call in calls} == {(400, 2, 2.0)}


def test_models_and_prompts_make_different_pictures(whole: Path) -> None:
    first = outputs(whole, "demo/prompt-1", "original")
    for column in ("demo/prompt-2", "other/prompt-1"):
        assert all((a != b).mean() > 0.1 for a, b in zip(first, outputs(whole, column, "original"), strict=True))


def test_cells_are_measured_on_the_pictures_that_were_kept(whole: Path) -> None:
    matrix, logged = read(whole / "matrix.json"), rows_of(whole)
    assert [row["step"] for row in logged] == list(range(1, 4 * 2 * 3 + 1))
    for cell in matrix["cells"]:
        mine = [row for row in logged if (row["row"], row["column"]) == (cell["row"], cell["column"])]
        assert [row["image"] for row in mine] == list(NAMES)
        made, before = outputs(whole, cell["column"], cell["row"]), outputs(whole, cell["column"], "original")
        for row, one, other in zip(mine, made, before, strict=True):
            found = compare_pair(one, other)
            assert {name: row[name] for name in found} == found
        for name in ("psnr", "ssim", "ms_ssim"):
            assert cell[name]["value"] == pytest.approx(np.mean([row[name] for row in mine]))
            assert cell[name]["low"] <= cell[name]["value"] <= cell[name]["high"]
        sets = [extract(Colours(), pictures) for pictures in (made, before)]
        # torchmetrics loses half of float64's digits of variances of some thousand.
        assert cell["fid"]["value"] == pytest.approx(frechet_distance(*sets), abs=1e-4)
        assert cell["fid"]["features"] == 3 and cell["fid"]["low"] <= cell["fid"]["value"] <= cell["fid"]["high"]
        assert cell["clip"] == {"value": None, "low": None, "high": None, "reason": "no CLIP model was given (--clip)"}
    assert "no CLIP scores: no CLIP model was given (--clip)" in matrix["warnings"]


def test_images_that_nobody_changed_come_out_the_same(build, here: Path, tmp_path: Path) -> None:
    summary = run_transfer(build(tmp_path / "run", attacked=(str(here / "same"),), to=("demo",), pictures=0))
    for name in NAMES:
        files = [tmp_path / "run" / "outputs" / "demo" / row / name for row in ("original", "same", "random-signs")]
        assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()
    cell = summary["cells"][0]
    assert cell["psnr"]["reason"].startswith("all outputs are identical") and cell["ssim"]["value"] == pytest.approx(1)
    assert 0 <= cell["fid"]["value"] < 1e-9
    assert not (tmp_path / "run" / "pictures.png").exists()
    # The captions of the originals, without --prompts.
    assert summary["columns"][0]["prompt"] is None
    assert any("same leaves 3 of 3 images as they were" in text for text in summary["warnings"])


def assert_same(run: Path, whole: Path) -> None:
    def contents(root: Path) -> dict[str, bytes]:
        skip = {"config.yaml", "environment.json", "summary.json", "metrics.jsonl"}
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name not in skip}

    assert contents(run) == contents(whole)
    assert rows_of(run) == rows_of(whole)


def test_an_interrupted_run_ends_in_the_same_bits(
    build, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, vary, count = Path(shutil.copytree(whole, tmp_path / "run")), variation.vary, 0
    # As far as a session came that did not reach the second model's first prompt.
    (run / "summary.json").unlink()
    shutil.rmtree(run / "outputs" / "other" / "prompt-1")
    shutil.rmtree(run / "checkpoints" / "other")

    def interrupted(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            signal.raise_signal(signal.SIGINT)
        return vary(*args)

    monkeypatch.setattr(variation, "vary", interrupted)
    # Two columns of 15 steps, the originals' 3, and one batch of 2.
    with pytest.raises(Interrupted, match="after 35 of 60 steps"):
        run_transfer(build(run, prompts=PROMPTS, resume=True))
    assert count == 3 and not (run / "summary.json").exists()
    # Half of the interrupted batch is lost: it runs again in the same composition.
    (run / "outputs" / "other" / "prompt-1" / "noise" / NAMES[1]).unlink()
    run_transfer(build(run, prompts=PROMPTS, resume=True))
    assert count == 3 + 4
    assert_same(run, whole)


@pytest.mark.parametrize("change", ["attacked", "original", "caption", "gone"])
def test_images_that_changed_in_between_are_refused(
    build, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    for name in ("originals", "noise"):
        shutil.copytree(here / name, tmp_path / name)
    changes = {"originals": tmp_path / "originals", "attacked": (f"noise={tmp_path / 'noise'}",), "to": ("demo",)}

    def pressed(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "measure_cell", pressed)
        with pytest.raises(KeyboardInterrupt):
            run_transfer(build(tmp_path / "run", **changes, guidance=1.0, steps=1))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert any(path.suffix == ".png" for path in before)
    changed = tmp_path / ("noise" if change in ("attacked", "gone") else "originals") / NAMES[1]
    if change == "caption":
        changed.with_suffix(".txt").write_text("a landscape")
    elif change == "gone":
        changed.unlink()
    else:
        pixels = load_image(changed)
        # No larger change than the attack's: the random signs stay the same.
        pixels[0, 0, 0] ^= 1
        save_png(pixels, changed)
    monkeypatch.setattr(variation, "vary", pressed)
    how = {"caption": "has another caption", "gone": "removed"}.get(change, "replaced")
    with pytest.raises(ValueError, match=rf"resume: inputs of the run .*: {NAMES[1]} {how}\); expected"):
        run_transfer(build(tmp_path / "run", **changes, guidance=1.0, steps=1, resume=True))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    with pytest.raises(KeyboardInterrupt):
        run_transfer(build(tmp_path / "run", **changes, guidance=1.0, steps=1, overwrite=True))
    assert not list((tmp_path / "run").rglob("*.png"))


def test_a_kill_while_rows_are_written_doubles_none(build, whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "summary.json").unlink()
    (run / "checkpoints" / "other" / "prompt-2" / "noise.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 19, "row": "noi')
    run_transfer(build(run, prompts=PROMPTS, resume=True))
    assert_same(run, whole)


def test_what_is_finished_is_left_alone(build, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **options: Any) -> Any:
        raise AssertionError("done again")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "make_plan", forbidden)
        assert run_transfer(build(whole, prompts=PROMPTS, resume=True)) == read(whole / "summary.json")
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "summary.json").unlink()
    monkeypatch.setattr(variation, "vary", forbidden)
    monkeypatch.setattr(run_module, "measure_cell", forbidden)
    run_transfer(build(run, prompts=PROMPTS, resume=True))
    assert_same(run, whole)


def test_clip_scores_that_were_missing_are_made_up_for(
    build, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Brightness:
        """A score that depends on the picture and on the text."""

        def __init__(self, source: str, device: Any) -> None:
            if not Path(source).exists():
                raise ValueError(f"clip: {source} can't be loaded: it is not there")

        def __call__(self, image: np.ndarray, text: str) -> float:
            return float(image.mean()) / 10 + len(text)

    monkeypatch.setattr(plan_module, "ClipScore", Brightness)
    run, weights = Path(shutil.copytree(whole, tmp_path / "run")), tmp_path / "weights"
    (run / "summary.json").unlink()
    config = (run / "config.yaml").read_text().replace("clip: null", f"clip: {weights}")
    (run / "config.yaml").write_text(config)
    first = run_transfer(build(run, prompts=PROMPTS, clip=str(weights), resume=True))
    assert first["cells"][0]["clip"]["reason"] == f"clip: {weights} can't be loaded: it is not there"
    assert any("it is not there" in text for text in first["warnings"])
    weights.mkdir()
    (run / "summary.json").unlink()
    summary = run_transfer(build(run, prompts=PROMPTS, clip=str(weights), resume=True))
    for cell in summary["cells"]:
        prompt = PROMPTS[int(cell["column"][-1]) - 1]
        made = outputs(run, cell["column"], cell["row"])
        assert cell["clip"]["value"] == pytest.approx(np.mean([p.mean() / 10 for p in made]) + len(prompt))
    before = outputs(run, "other/prompt-2", "original")
    expected = np.mean([picture.mean() / 10 for picture in before]) + len(PROMPTS[1])
    assert summary["columns"][3]["clip_of_originals"]["value"] == pytest.approx(expected)
    assert len(rows_of(run)) == 24 and not any("CLIP" in text for text in summary["warnings"])


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"to": ("demo", "gone=no/such/model/x")}, "model: 'no/such/model/x' does not exist"),
    "folder": ({"attacked": ("x=nowhere",)}, "attacked: x: image folder nowhere does not exist"),
    "originals": ({"originals": Path("nowhere")}, "originals: image folder nowhere does not exist"),
    "steps": ({"steps": 500}, "steps: expected at most 400"),
    "resolution": ({"resolution": 50}, "resolution: expected a positive multiple of"),
    "features": ({"features": "nonsense"}, "features: 'nonsense' is unknown"),
    "shape": ({"features": "torch.nn:Identity"}, r"features: expected an output of shape \(1, F\)"),
    "strength": ({"strength": 2.0}, "strength: expected a number above 0 and below 1"),
    "device": ({"device": "cuda:99"}, "device: "),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained_and_nothing_is_written(build, tmp_path: Path, case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises((ValueError, OSError), match=message):
        run_transfer(build(tmp_path / "out", **({"to": ("demo",)} | changes)))
    assert not list(tmp_path.iterdir())


def test_no_input_is_written_into_or_deleted(build, here: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="out: .* lies inside the attacked noise"):
        run_transfer(build(here / "noise" / "out"))
    with pytest.raises(ValueError, match="out: .* lies inside the to other"):
        run_transfer(build(here / "other" / "out"))
    out = tmp_path / "run"
    shutil.copytree(here / "noise", out / "noise")
    (out / "config.yaml").write_text("command: transfer\nout: x\n")
    with pytest.raises(ValueError, match="overwrite: attacked noise .* would be deleted"):
        run_transfer(build(out, attacked=(str(out / "noise"),), overwrite=True))
    assert len(list(out.rglob("*.png"))) == 3


def test_another_resolution_is_said(build, tmp_path: Path) -> None:
    config = build(tmp_path / "run", to=("demo",), resolution=32, guidance=1.0, baseline=False, steps=1)
    summary = run_transfer(config)
    assert load_image(tmp_path / "run" / "outputs" / "demo" / "noise" / NAMES[0]).shape == (32, 32, 3)
    assert any(text.startswith("demo sees images of 64 x 64 pixels at 32 x 32") for text in summary["warnings"])
    assert "minus_random" not in summary["cells"][0] and len(summary["cells"]) == 1


def test_the_command_line(build, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["transfer", "--originals", str(here / "originals"), "--attacked", f"noise={here / 'noise'}"]
    words += ["--to", "demo", f"second={here / 'other'}", "--features", COLOURS, "--device", "cpu", "--resamples", "0"]
    words += ["--steps", "1", "--guidance", "1", "--prompt", "a person", "--out", str(out)]
    assert main(words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in ("PSNR (dB): lower = stronger attack", "second", "random-signs", "3 images, 2 x 2 cells", "warning:"):
        assert text in printed
    assert main(["transfer", "--config", str(out / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "matrix.json").read_bytes() == (out / "matrix.json").read_bytes()
    capsys.readouterr()
    assert (
        main(["transfer", "--config", str(out / "config.yaml"), "--out", str(tmp_path / "x"), "--to", "a=b", "A=c"])
        == 2
    )
    assert "error: to: two are called 'A'" in capsys.readouterr().err
