"""The stages of pretraining at toy size: they learn, and an interrupted one ends where an uninterrupted one does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lordfast.data import make_faces, make_landscapes
from lordfast.demo.pretrain import classifier as classifier_stage
from lordfast.demo.pretrain import pictures as pictures_module
from lordfast.demo.pretrain import vae as vae_stage
from lordfast.demo.pretrain.classifier import ClassifierConfig, damage, labels_of, train_classifier
from lordfast.demo.pretrain.pictures import Pictures, draw, drawn
from lordfast.demo.pretrain.vae import VaeConfig, train_vae
from lordfast.training.loop import train


class Stop(Exception):
    """Ends a run as a power cut would: after the checkpoint of a step."""


def some(kind: str, n: int) -> Pictures:
    items = (make_faces if kind == "faces" else make_landscapes)(n, 1)
    return Pictures(np.stack([item.image for item in items]), [item.attributes for item in items])


SETS = {kind: some(kind, 12) for kind in ("faces", "landscapes")}
FEW = {kind: some(kind, 2) for kind in ("faces", "landscapes")}


def vae_run(out: Path, **changes: Any) -> dict[str, Any]:
    common: dict[str, Any] = {"steps": 12, "batch_size": 2, "lr": 2e-3, "checkpoint_every": 5, "sample_every": 100}
    config = VaeConfig(out=out, channels=(8, 8, 8), device="cpu", tensorboard=False, **common | changes)
    return train_vae(config, SETS["faces"] + SETS["landscapes"], FEW)


def classifier_run(out: Path, **changes: Any) -> dict[str, Any]:
    common: dict[str, Any] = {"steps": 12, "batch_size": 6, "lr": 3e-3, "checkpoint_every": 5}
    config = ClassifierConfig(
        out=out, channels=(8, 8, 8, 8), num_features=16, device="cpu", tensorboard=False, **common | changes
    )
    return train_classifier(config, SETS, FEW)


STAGES = {"vae": (vae_stage, vae_run), "classifier": (classifier_stage, classifier_run)}


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_stage_ends_as_an_uninterrupted_one(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, run = STAGES[stage]
    whole = run(tmp_path / "whole")

    def until_seven(*args: Any, after_update: Any, **kwargs: Any) -> Any:
        updates = iter(range(7))

        def update() -> None:
            if next(updates, None) is None:
                raise Stop
            after_update()

        return train(*args, after_update=update, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, "train", until_seven)
        with pytest.raises(Stop):
            run(tmp_path / "cut")
    assert not (tmp_path / "cut" / "model").exists()
    resumed = run(tmp_path / "cut", resume=True)

    files = sorted((tmp_path / "whole" / "model").glob("*.safetensors"))
    assert files
    for file in files:
        one, other = load_file(file), load_file(tmp_path / "cut" / "model" / file.name)
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(value, other[name]), name
    del whole["seconds"], resumed["seconds"]
    assert resumed == whole
    # A finished stage is not trained again.
    assert run(tmp_path / "cut", resume=True) | {"seconds": 0} == resumed | {"seconds": 0}


def test_the_vae_learns(tmp_path: Path) -> None:
    untrained, trained = vae_run(tmp_path / "a", steps=1), vae_run(tmp_path / "b", steps=60, ema_decay=0.9)
    assert trained["loss"] < 0.8 * untrained["loss"]
    for kind in FEW:
        assert trained["psnr"][kind] > untrained["psnr"][kind] + 1


def test_the_classifier_learns(tmp_path: Path) -> None:
    untrained, trained = classifier_run(tmp_path / "a", steps=1), classifier_run(tmp_path / "b", steps=80)
    assert trained["loss"] < 0.8 * untrained["loss"]
    assert trained["accuracy"]["kind"] == 1.0


def test_bald_people_have_no_hair_colour_to_learn() -> None:
    seen = set()
    for item in make_faces(40, 2, size=16):
        labels = labels_of(item.attributes)
        bald = labels["hair_style"] == "bald"
        assert ("hair_color" in labels) != bald
        assert labels["kind"] == "face"
        seen.add(bald)
    assert seen == {True, False}
    assert labels_of(make_landscapes(1, 0, size=16)[0].attributes)["kind"] == "landscape"


def test_damage_is_what_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = SETS["faces"].pixels(range(8))
    noise = torch.randn(pixels.shape, generator=generator)

    def damaged(**choices: float) -> torch.Tensor:
        # Neither mirrored nor spared, light as it was, everything else off.
        names = ("mirror", "whole", "light", "blur", "coarse", "grain", "budget", "pattern")
        plain = {"mirror": 0.9, "whole": 0.9, "light": 0.5, **dict.fromkeys(names[3:], 0.0)} | choices
        return damage(pixels, torch.tensor([[plain[name] for name in names]] * 8), noise)

    torch.testing.assert_close(damaged(), pixels, atol=1e-6, rtol=0)
    torch.testing.assert_close(damaged(mirror=0.1), pixels.flip(-1), atol=1e-6, rtol=0)
    assert torch.equal(damaged(whole=0.1, blur=1.0, grain=1.0), pixels)
    inside = pixels.abs() < 0.8
    for pattern in (0.1, 0.9):
        change = (damaged(budget=1.0, pattern=pattern) - pixels)[inside].abs() * 127.5
        torch.testing.assert_close(change, torch.full_like(change, 16.0), atol=0.01, rtol=0)
    edges = [
        (image[..., 1:] - image[..., :-1]).abs().mean() for image in (pixels, damaged(blur=1.0), damaged(coarse=1.0))
    ]
    assert edges[1] < 0.8 * edges[0] and edges[2] < 0.9 * edges[0]
    assert float((damaged(light=1.0) + 1).mean() / (pixels + 1).mean()) == pytest.approx(1.08, abs=0.02)


def test_a_sets_first_pictures_do_not_depend_on_how_many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pictures_module, "CHUNK", 4)
    few, many = draw("faces", 6, 3), draw("faces", 9, 3)
    assert (len(few), len(many)) == (6, 9)
    np.testing.assert_array_equal(few.images, many.images[:6])
    assert few.attributes == many.attributes[:6]
    # Chunks have seeds of their own.
    assert len({image.tobytes() for image in many.images}) == 9
    kept = drawn(tmp_path / "faces.npz", "faces", 6, 3)
    np.testing.assert_array_equal(kept.images, few.images)

    def forbidden(*args: Any) -> Any:
        raise AssertionError("drawn again")

    monkeypatch.setattr(pictures_module, "draw", forbidden)
    again = drawn(tmp_path / "faces.npz", "faces", 6, 3)
    np.testing.assert_array_equal(again.images, kept.images)
    assert again.attributes == kept.attributes
