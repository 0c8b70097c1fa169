"""Attacked faces, and configs of purifiers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lordfast.attacks.budget import Budget
from lordfast.attacks.engine import PgdSettings, perturb
from lordfast.attacks.pgd import pgd_loss
from lordfast.data import make_faces
from lordfast.diffusion import LatentDiffusion
from lordfast.purify.config import PurifyConfig
from lordfast.purify.registry import PURIFIERS


@pytest.fixture(scope="session")
def clean() -> list[np.ndarray]:
    """Four procedural faces, uint8 (64, 64, 3)."""
    return [face.image for face in make_faces(4, seed=7)]


@pytest.fixture(scope="session")
def rough(clean: list[np.ndarray]) -> list[np.ndarray]:
    """The same faces with every pixel moved by 16 grey levels, up or down at random."""
    rng = np.random.default_rng(5)
    signs = [16 * rng.choice([-1, 1], size=image.shape) for image in clean]
    return [(image + sign).clip(0, 255).astype(np.uint8) for image, sign in zip(clean, signs, strict=True)]


@pytest.fixture(scope="session")
def attacked(_loaded_demo_model: LatentDiffusion, clean: list[np.ndarray]) -> list[np.ndarray]:
    """The same faces, attacked with 16 grey levels, so that the embedded model sees something else."""
    model = _loaded_demo_model
    loss = pgd_loss(model, targeted=True, target=None, resolution=64)
    settings = PgdSettings(budget=Budget(16 / 255, 3 / 255, "linf"), steps=12)
    return perturb(model, clean, model.embed([""] * len(clean)), loss, settings)


@pytest.fixture
def config(tmp_path: Path, faces: Path) -> Callable[..., PurifyConfig]:
    """``config(name, **options)``: of a purifier, on the folder of faces, on the CPU."""

    def build(name: str, **overrides: Any) -> PurifyConfig:
        options: dict[str, Any] = {"images": faces, "out": tmp_path / "run", "device": "cpu"}
        if hasattr(PURIFIERS[name].config, "load"):
            options["model"] = "demo"
        return PURIFIERS[name].config(**(options | overrides))

    return build
