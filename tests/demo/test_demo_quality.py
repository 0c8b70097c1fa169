"""The gate of the embedded model: crisp reconstructions, pictures that follow their captions, a small folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lordfast.data import load_image
from lordfast.demo import quality
from lordfast.demo.quality import AGREEMENT_FLOORS, MAX_BYTES, PSNR_FLOORS, QualityConfig, failures, measure, psnr

PICTURES = 32
# Shares of 32 pictures have a standard deviation of at most 0.09.
SLACK = 0.1


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("quality")
    return measure(QualityConfig(pictures=PICTURES, steps=15, seed=3, out=out)), out


def test_the_shipped_model_meets_the_gate(found: tuple[dict[str, Any], Path]) -> None:
    assert failures(found[0], SLACK) == []


def test_what_the_gate_asks_for_is_far_above_chance(found: tuple[dict[str, Any], Path]) -> None:
    rows = {name: row for kind in found[0]["agreement"].values() for name, row in kind.items()}
    for name in AGREEMENT_FLOORS:
        assert rows[name]["low"] > rows[name]["chance"], name
        assert rows[name]["n"] > PICTURES // 2, name


def test_figures_and_grids_are_kept(found: tuple[dict[str, Any], Path]) -> None:
    summary, out = found
    assert json.loads((out / "quality.json").read_text()) == summary
    for kind in PSNR_FLOORS:
        for grid in ("vae", "generated", "captions"):
            assert load_image(out / f"{grid}-{kind}.png").std() > 20


def test_psnr_by_its_definition() -> None:
    one = np.zeros((2, 4, 4, 3), np.uint8)
    other = one.copy()
    other[0] += 10
    other[1, :2] += 20
    np.testing.assert_allclose(psnr(one, other), [20 * np.log10(25.5), 10 * np.log10(255**2 / 200)])


def _summary() -> dict[str, Any]:
    good = {"agreement": 0.95, "low": 0.8, "high": 1.0, "n": 9, "chance": 0.2}
    return {
        "bytes": MAX_BYTES,
        "psnr": dict(PSNR_FLOORS),
        "agreement": {"all": {name: dict(good) for name in AGREEMENT_FLOORS}},
    }


def test_every_miss_is_named() -> None:
    summary = _summary()
    assert failures(summary) == []
    summary["bytes"] += 1
    summary["psnr"]["faces"] -= 0.01
    summary["agreement"]["all"]["skin"]["agreement"] = 0.69
    size, faces, skin = failures(summary)
    assert "15000001 bytes" in size
    assert "faces is 30.99 dB" in faces
    assert "skin agrees with 69%" in skin


def test_the_command_fails_below_the_gate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    summary = _summary()
    monkeypatch.setattr(quality, "measure", lambda config: summary)
    monkeypatch.setattr("sys.argv", ["quality"])
    assert quality.main() == 0
    summary["psnr"]["landscapes"] = 20.0
    assert quality.main() == 1
    assert "PSNR of landscapes is 20.00 dB" in capsys.readouterr().out
