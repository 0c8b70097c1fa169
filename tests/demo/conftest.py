"""Demo runs small enough for a test, one of each layout."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lordfast.cli.main import main
from lordfast.demo import recipes

TINY = recipes.Scale(
    images=3,
    attack_steps=2,
    others=4,
    stage1_attack_steps=1,
    stage1_steps=2,
    stage2_steps=2,
    generated=2,
    sampler_steps=2,
    reference=4,
)


@pytest.fixture(scope="session")
def tiny() -> Iterator[recipes.Scale]:
    """The scale of all quick runs from here on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "QUICK", TINY)
        yield TINY


def tell(folder: Path, *flags: str) -> Path:
    assert main(["demo", "--quick", "--out", str(folder / "run"), "--device", "cpu", *flags]) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def demo(tiny: recipes.Scale, made_once: Callable[..., Path]) -> Path:
    """Of one person, on the LoRD that is shipped."""
    return made_once("demo", tell) / "run"


@pytest.fixture(scope="session")
def seeds(tiny: recipes.Scale, made_once: Callable[..., Path]) -> Path:
    """Two seeds of the same person, on a LoRD that is trained there."""
    flags = ("--seeds", "2", "--identity", "5", "--train-lord")
    return made_once("demo-seeds", lambda folder: tell(folder, *flags)) / "run"


@pytest.fixture(scope="session")
def landscape(tiny: recipes.Scale, made_once: Callable[..., Path]) -> Path:
    """Of one place."""
    return made_once("demo-landscape", lambda folder: tell(folder, "--landscape")) / "run"
