"""`lordfast attack NAME --explain`: rule, budget in grey levels, source; and the numbers of the presets."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lordfast.attacks.registry import ATTACKS
from lordfast.cli.main import main

# Published budget and step, and the scale they are on: [0, 1] pixels (1) or [-1, 1] tensors (2).
PUBLISHED = {
    "advdm": (16 / 255, 1 / 255, 1),
    "mist-v1": (16 / 255, 1 / 255, 1),
    "mist-v1-textural": (16 / 255, 1 / 255, 1),
    "mist-v1-semantic": (16 / 255, 1 / 255, 1),
    "photoguard-encoder": (0.06, 0.02, 2),
    "photoguard-diffusion": (16, 1, 2),
    "antidreambooth-fsmg": (0.05, 0.005, 2),
    "antidreambooth": (0.05, 0.005, 2),
    "ace": (8 / 255, 0.005, 2),
    "ace-plus": (8 / 255, 0.005, 2),
    "ace-paper-s1": (8 / 255, 0.005, 1),
    "ace-paper-s1-vggface2": (4 / 255, 0.005, 1),
    "ace-paper-s1-landscape": (16 / 255, 0.005, 1),
    "ace-paper-s2": (8 / 255, 0.005, 2),
    "ace-paper-s2-vggface2": (4 / 255, 0.005, 2),
    "ace-paper-s2-landscape": (16 / 255, 0.005, 2),
    "ldm-robustness": (0.1, 0.01, 1),
}
PRESETS = [(name, preset) for name, attack in ATTACKS.items() for preset in attack.presets]


def test_every_preset_is_listed_here_once() -> None:
    assert sorted(preset for _, preset in PRESETS) == sorted(PUBLISHED)


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_presets_are_the_published_numbers_in_unit_pixels(name: str, preset: str) -> None:
    attack = ATTACKS[name]
    values: dict[str, Any] = dict(attack.presets[preset].values)
    assert set(values) <= {field.name for field in dataclasses.fields(attack.config)}
    settings = attack.config(model="demo", images=Path("."), out=Path("."), **values).settings(0)
    eps, step, scale = PUBLISHED[preset]
    assert settings.budget.eps == pytest.approx(eps / scale)
    assert settings.budget.step_size == pytest.approx(step / scale)


@pytest.mark.parametrize(
    ("preset", "rounds", "image", "train", "lr"),
    [
        ("antidreambooth", 50, 6, 3, 5e-7),
        ("ace", 5, 30, 10, 1e-4),
        ("ace-plus", 5, 50, 5, 1e-4),
        ("ace-paper-s1", 4, 50, 10, 1e-5),
        ("ace-paper-s2-landscape", 4, 50, 10, 1e-5),
    ],
)
def test_alternations_are_the_published_ones(preset: str, rounds: int, image: int, train: int, lr: float) -> None:
    values = next(ATTACKS[name].presets[found].values for name, found in PRESETS if found == preset)
    found = [values[field] for field in ("rounds", "attack_steps", "train_steps", "surrogate_lr")]
    assert found == [rounds, image, train, lr]


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_explains_itself(name: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["attack", name, "--explain"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    attack = ATTACKS[name]
    config = attack.config(model="demo", images=Path("."), out=Path("."))
    for part in (
        attack.rule(config),
        attack.source,
        "grey levels",
        *attack.presets,
        *(p.original for p in attack.presets.values()),
    ):
        assert " ".join(part.split()) in text


def test_the_explanation_follows_flags_and_presets(capsys: pytest.CaptureFixture) -> None:
    def explain(*words: str) -> str:
        assert main(["attack", *words, "--explain"]) == 0
        return " ".join(capsys.readouterr().out.split())

    assert "eps 4 grey levels and steps of 2 grey levels" in explain("pgd", "--eps", "4/255", "--step-size", "2/255")
    paper = explain("ace", "--preset", "ace-paper-s1")
    assert "eps 8 grey levels and steps of 1.275 grey levels" in paper
    assert "4 rounds: 50 image steps, 10 training steps on the perturbed images" in paper
    assert "Preset ace-paper-s1: the LoRD paper's CelebA-HQ: zeta 8/255" in paper
    assert "eps 4 grey levels" in explain("ace", "--preset", "ace-paper-s2")
    aspl = explain("aspl", "--rounds", "7")
    assert (
        "7 rounds: remember the surrogate, 3 training steps on the clean images, 6 image steps, put it back, "
        "3 training steps on the perturbed images" in aspl
    )
    assert "timesteps from 600 to the last" in explain("ace-plus")
    assert "eps 510 grey levels and steps of 255 grey levels in the whole image's norm (l2)" in explain(
        "pgd", "--norm", "l2", "--eps", "2", "--step-size", "1"
    )
    assert "shrinking to 0.01 of the first" in explain("photoguard")
    assert "sum (E(x) - z_target)^2 - 500 x diffusion loss" in explain("mist", "--semantic-weight", "500")
    assert "descends sum (E(x) - z_target)^2 Budget" in explain("mist", "--mode", "textural")
    assert "descends || E(x) ||_2 Budget" in explain("photoguard", "--to-zero")
    assert "5 x || E(x) - z_target ||^2" in explain("ace-plus", "--latent-weight", "5")
    assert "less the distance of x_hat_{t-1}" in explain("aspl", "--targeted")
    assert "less the distance" not in explain("aspl")
    assert "Rule" in explain("pgd", "--transfer-to", "demo")
    assert "Gaussian noise of 25.5 grey levels, cut to the budget" in explain("feature")


def test_bad_input_is_an_error_here_too(capsys: pytest.CaptureFixture) -> None:
    assert main(["attack", "pgd", "--explain", "--eps", "8"]) == 2
    assert "error: eps: 8 is above 1" in capsys.readouterr().err
    assert main(["attack", "ace", "--explain", "--preset", "paper"]) == 2
    assert "preset: expected one of: ace, ace-paper-s1" in capsys.readouterr().err
