"""`lordfast attack` on a folder as people have them: names, captions, modes, budgets, and what is refused."""

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lordfast.attacks import folder as folder_module
from lordfast.attacks import frames as frames_module
from lordfast.attacks import run as run_module
from lordfast.attacks.pgd import PgdConfig
from lordfast.attacks.run import run_attack
from lordfast.data import BadImageError, list_images, load_image
from lordfast.data.images import fit_layers, load_fitted, load_layers

Attack = Callable[..., dict[str, Any]]


@pytest.fixture
def config(tmp_path: Path, faces: Path) -> Callable[..., PgdConfig]:
    """A small, quick attack on the faces."""

    def build(**overrides: Any) -> PgdConfig:
        options = {
            "model": "demo",
            "images": faces,
            "out": tmp_path / "run",
            "device": "cpu",
            "attack_steps": 2,
            "step_size": "4/255",
            "batch_size": 3,
        }
        return PgdConfig(**(options | overrides))

    return build


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def products(run: Path) -> list[str]:
    return sorted(path.relative_to(run).as_posix() for path in run.rglob("*.png"))


@pytest.mark.parametrize(("norm", "eps", "step"), [("linf", "8/255", "4/255"), ("l2", "2.5", "1.5")])
def test_a_folder_of_photographs(photos: Path, config, tmp_path: Path, norm: str, eps: str, step: str) -> None:
    out = tmp_path / "run"
    summary = run_attack("pgd", config(images=photos, eps=eps, step_size=step, norm=norm))
    names = {
        "astronaut.jpg": "astronaut.png",
        "china.jpg": "china.png",
        "coffee.png": "coffee.png",
        "flower.png": "flower.png",
        "moon.png": "moon.png",
        "moon16.png": "moon16.png",
        "portrait.jpg": "portrait.png",
        "sub/china.jpg": "sub/china.jpg.png",
        "sub/china.png": "sub/china.png",
    }
    assert products(out) == sorted(names.values())
    rows = metrics(out)
    assert {row["image"]: row["output"] for row in rows} == names
    budget = 8 / 255 if norm == "linf" else 2.5
    for row in rows:
        # The file on disk against the file that was given, cut to the middle.
        with Image.open(out / row["output"]) as saved:
            alpha = row["image"] == "flower.png"
            assert (saved.format, saved.mode, saved.size) == ("PNG", "RGBA" if alpha else "RGB", (64, 64))
        (colours, _), (before, _) = load_layers(out / row["output"]), fit_layers(load_layers(photos / row["image"]), 64)
        change = colours.astype(np.float64) - before
        # Nor does what training sees of it, on white, change by more.
        seen = np.abs(load_image(out / row["output"]).astype(int) - load_fitted(photos / row["image"], 64)).max()
        assert seen <= (8 if norm == "linf" else 255)
        size = np.abs(change).max() if norm == "linf" else np.linalg.norm(change)
        assert 0.5 * budget * 255 < size <= budget * 255 * (1 + 1e-9), row["image"]
        assert row["largest_change"] == np.abs(change).max()
        assert row["l2_change"] == pytest.approx(np.linalg.norm(change) / 255)
    assert (summary["images"], summary["skipped"], summary["norm"]) == (9, 0, norm)
    assert summary["loss_clean"] == pytest.approx(np.mean([row["loss_clean"] for row in rows]))
    assert summary["loss_attacked"] == pytest.approx(np.mean([row["loss_attacked"] for row in rows]))
    assert json.loads((out / "summary.json").read_text()) == summary

    # Captions travel with the images, so that training reads the result as it reads the originals.
    before = {record.name: record.caption for record in list_images(photos)}
    after = {record.name: record.caption for record in list_images(out)}
    assert None not in before.values()
    assert after == {names[name]: caption for name, caption in before.items()}


def test_the_prompt_conditions_the_attack_and_becomes_the_caption(config, tmp_path: Path, faces: Path) -> None:
    run_attack("pgd", config())
    run_attack("pgd", config(out=tmp_path / "other", prompt="a photo of a landscape"))
    records = list_images(tmp_path / "other")
    assert {record.caption for record in records} == {"a photo of a landscape"}
    name = records[0].name
    own, other = load_image(tmp_path / "run" / name), load_image(tmp_path / "other" / name)
    assert (own != other).mean() > 0.05, "the prompt did not reach the model"


def test_images_without_captions_get_none(config, tmp_path: Path, faces: Path) -> None:
    for path in [*faces.glob("*.txt"), *faces.glob("*.jsonl")]:
        path.unlink()
    run_attack("pgd", config())
    assert list((tmp_path / "run").glob("*.txt")) == []
    assert len(products(tmp_path / "run")) == 4


def test_the_run_is_reproducible_and_the_seed_matters(config, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_attack("pgd", config(out=tmp_path / name, seed=seed))
    for name in products(tmp_path / "a"):
        images = [load_image(tmp_path / run / name) for run in "abc"]
        assert (images[0] == images[1]).all()
        assert (images[0] != images[2]).mean() > 0.2


def test_images_are_read_when_their_turn_comes(config, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref] = []
    most = 0
    read = frames_module.load_layers

    def watch(*args: Any) -> Any:
        nonlocal most
        image, alpha = read(*args)
        gc.collect()
        most = max(most, 1 + sum(reference() is not None for reference in alive))
        alive.append(weakref.ref(image))
        return image, alpha

    monkeypatch.setattr(frames_module, "load_layers", watch)
    run_attack("pgd", config(batch_size=1, attack_steps=0))
    assert len(alive) == 8, "each of the 4 images is checked and then read"
    assert most <= 3


def test_a_bad_image_is_named_before_anything_is_written(config, faces: Path, tmp_path: Path) -> None:
    (faces / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    with pytest.raises(BadImageError, match=r"broken\.jpg"):
        run_attack("pgd", config())
    assert not (tmp_path / "run").exists()


def test_skip_bad_goes_on_and_names_it(config, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (faces / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    summary = run_attack("pgd", config(skip_bad=True))
    assert (summary["images"], summary["skipped"]) == (4, 1)
    assert "broken.jpg" in capsys.readouterr().err.replace("\n", "")
    assert len(products(tmp_path / "run")) == 4


def test_nothing_but_bad_images_is_an_error_even_when_skipped(config, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 1 images could be read"):
        run_attack("pgd", config(images=tmp_path / "bad", skip_bad=True))
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_refused_early(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_attack("pgd", config(attack_steps=0))
    before = {name: (tmp_path / "run" / name).read_bytes() for name in products(tmp_path / "run")}

    def no_model(*args: Any, **options: Any) -> None:
        pytest.fail("the model was loaded first")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "load_placed", no_model)
        with pytest.raises(ValueError, match="holds a run already"):
            run_attack("pgd", config())
        with pytest.raises(ValueError, match="attack_steps: 0 -> 2"):
            run_attack("pgd", config(resume=True))
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in products(tmp_path / "run")}
    run_attack("pgd", config(overwrite=True))
    changed = [name for name, content in before.items() if (tmp_path / "run" / name).read_bytes() != content]
    assert len(changed) == 4


@pytest.mark.parametrize("place", ["same", "inside", "around"])
def test_results_and_images_keep_apart(config, faces: Path, place: str) -> None:
    out = {"same": faces, "inside": faces / "attacked", "around": faces.parent}[place]
    before = sorted(faces.parent.rglob("*"))
    message = "not empty and holds no run" if place == "around" else "lies inside the images"
    with pytest.raises(ValueError, match=message):
        run_attack("pgd", config(out=out, overwrite=True))
    assert sorted(faces.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"eps": "9"}, ValueError, "9 grey levels are 9/255"),
        ({"step_size": "-1/255"}, ValueError, "step_size: expected pixels"),
        ({"norm": "l3"}, ValueError, "norm: expected one of linf, l2"),
        ({"attack_steps": -1}, ValueError, "attack_steps: expected 0 or more, got -1"),
        ({"draws": 0}, ValueError, "draws: expected at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size: expected at least 1"),
        ({"resolution": 50}, ValueError, "resolution: expected a positive multiple of 16"),
        ({"model": "no-such-model"}, ValueError, "model: 'no-such-model' does not exist"),
        ({"dtype": "fp8"}, ValueError, "dtype: expected one of"),
        ({"target": Path("x.png")}, ValueError, "target: x.png was given without targeted"),
        ({"targeted": True, "target": Path("x.png")}, ValueError, "x.png: no such file"),
        ({"images": Path("nowhere")}, FileNotFoundError, "image folder nowhere does not exist"),
    ],
)
def test_bad_requests_write_nothing(config, tmp_path: Path, overrides: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        run_attack("pgd", config(**overrides))
    assert not (tmp_path / "run").exists()


def test_an_unknown_attack(config) -> None:
    with pytest.raises(ValueError, match="attack: expected one of fgsm, pgd, .*, got 'fog'"):
        run_attack("fog", config())


def test_too_little_memory_says_what_helps(config, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(folder_module, "perturb", full)
    with pytest.raises(ValueError, match="batch_size: 3 images of 64 x 64 don't fit .*low_memory"):
        run_attack("pgd", config())


def test_targeted_low_memory_bf16_at_another_resolution(config, tmp_path: Path, photos: Path) -> None:
    summary = run_attack(
        "pgd",
        config(targeted=True, target=photos / "china.jpg", low_memory=True, draws=2, dtype="bf16", resolution=32),
    )
    assert summary["resolution"] == 32
    assert load_image(tmp_path / "run" / products(tmp_path / "run")[0]).shape == (32, 32, 3)
    assert summary["loss_attacked"] < summary["loss_clean"]


def test_budgets_below_a_grey_level_change_nothing_and_say_so(config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"eps: 0\.5/255 is less than one grey level"):
        run_attack("pgd", config(eps="0.5/255"))
    assert not (tmp_path / "run").exists()
    # 8/255 of a whole image's norm are at most 64 pixel values by one level each.
    assert run_attack("pgd", config(norm="l2"))["unchanged"] == 4
    assert run_attack("pgd", config(norm="l2", eps="3", out=tmp_path / "strong"))["unchanged"] == 0
