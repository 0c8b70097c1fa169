"""The picture that attacks pull to, and that each pulls to its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lordfast.attacks import engine
from lordfast.attacks.budget import Budget
from lordfast.attacks.engine import PgdSettings, probe_loss
from lordfast.attacks.pgd import LdmLoss, PgdConfig, TargetedLoss, pgd_loss
from lordfast.attacks.target import Target, target_pattern
from lordfast.data import fit_image, load_image, make_faces, save_png
from lordfast.pixels import to_tensor

SETTINGS = PgdSettings(Budget(8 / 255, 2 / 255), steps=10)
CONFIG = PgdConfig(model="demo", images=Path("."), out=Path("."))


def test_each_target_pulls_to_itself(demo_model, tmp_path: Path) -> None:
    people = make_faces(2, seed=3)
    images, text = [face.image for face in people], demo_model.embed([face.caption for face in people])
    picture = np.zeros((90, 70, 3), np.uint8)
    picture[::2] = 255
    save_png(picture, tmp_path / "stripes.png")
    losses = {
        "pattern": pgd_loss(replace(CONFIG, targeted=True)),
        "file": pgd_loss(replace(CONFIG, targeted=True, target=tmp_path / "stripes.png")),
    }
    found = {}
    for made, loss in losses.items():
        levels = engine.perturb(demo_model, images, text, loss, SETTINGS)
        found[made] = [SETTINGS.budget.quantise(level, image) for level, image in zip(levels, images, strict=True)]
    for made, loss in losses.items():
        mean = {
            name: float(np.mean(probe_loss(demo_model, group, images, text, loss, SETTINGS, seed=99)))
            for name, group in found.items()
        }
        other = "file" if made == "pattern" else "pattern"
        assert mean[made] < mean[other]


def test_the_target_is_shown_at_the_images_size_and_encoded_once(demo_model, photos: Path, monkeypatch) -> None:
    target = Target(photos / "china.jpg")
    picture = load_image(photos / "china.jpg")
    for height, width in ((32, 32), (48, 80)):
        like = torch.zeros(2, 3, height, width)
        assert (target.pixels(like) == to_tensor([fit_image(picture, (height, width))])).all()
        latents = target.latents(demo_model, like)
        assert latents.shape == (1, 4, height // 4, width // 4) and not latents.requires_grad
        assert torch.equal(latents, demo_model.encode(target.pixels(like)).detach())
    monkeypatch.setattr(demo_model, "encode", lambda *args: pytest.fail("it was encoded before"))
    assert torch.equal(target.latents(demo_model, torch.ones(1, 3, 48, 80)), latents)


def test_the_loss_follows_the_options() -> None:
    targeted = pgd_loss(replace(CONFIG, targeted=True))
    assert isinstance(targeted, TargetedLoss) and targeted.direction == -1
    assert pgd_loss(CONFIG) == LdmLoss(1)


def test_the_pattern_is_high_contrast_and_the_same_at_every_size() -> None:
    pattern = target_pattern(64, 64)
    assert set(np.unique(pattern)) == {0, 255}
    assert 100 < pattern.mean() < 155
    assert (Target().image(64, 64) == pattern).all()
    large = target_pattern(256, 256)[2::4, 2::4]
    assert (large == pattern).mean() > 0.8
    assert (target_pattern(32, 64) == pattern[16:48]).all()


def test_bad_targets(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="target: .*china.jpg was given without targeted"):
        pgd_loss(replace(CONFIG, target=photos / "china.jpg"))
    with pytest.raises(ValueError, match=r"nothing\.png: no such file"):
        pgd_loss(replace(CONFIG, targeted=True, target=tmp_path / "nothing.png"))
