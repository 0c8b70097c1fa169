"""Alternating attacks on a folder: interrupted or killed anywhere, they go on to the bit-same files."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lordfast.attacks import subject as subject_module
from lordfast.attacks import surrogate as surrogate_module
from lordfast.attacks.registry import ATTACKS
from lordfast.attacks.run import run_attack
from lordfast.data import load_image
from lordfast.training.interrupt import Interrupted
from lordfast.training.lora import LoraObjective

QUICK = {"attack_steps": 2, "step_size": "4/255", "eps": "8/255", "train_steps": 2, "batch_size": 2}


@pytest.fixture
def config(faces: Path, tmp_path: Path) -> Callable[..., Any]:
    """A quick attack on four faces in two batches."""

    def build(name: str, out: str, **fields: Any) -> Any:
        options: dict[str, Any] = {"model": "demo", "images": faces, "device": "cpu", **QUICK, **fields}
        if name != "fsmg":
            options.setdefault("rounds", 2)
        return ATTACKS[name].config(out=tmp_path / out, **options)

    return build


def images(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.glob("*.png")}


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same(run: Path, whole: Path) -> None:
    assert images(run) == images(whole) and len(images(run)) == 4
    assert rows(run) == rows(whole) and len(rows(run)) == 4
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "fields"), [("ace", {}), ("aspl", {"surrogate_lr": 1e-5}), ("fsmg", {"targeted": True})]
)
def test_a_signal_at_any_moment(
    name: str, fields: dict[str, Any], config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_attack(name, config(name, "whole", **fields))
    descend, calls = subject_module.descend, []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) in (1, 3):
            signal.raise_signal(signal.SIGTERM)
        return descend(*args)

    monkeypatch.setattr(subject_module, "descend", interrupted)
    stops = 0
    while True:
        try:
            run_attack(name, config(name, "run", resume=stops > 0, **fields))
            break
        except Interrupted as stop:
            assert re.fullmatch(r"after \d+ of \d+ phases", stop.done) and list(
                (tmp_path / "run" / "checkpoints").iterdir()
            )
            assert not images(tmp_path / "run")
            stops += 1
    assert stops == (1 if name == "fsmg" else 2)
    assert len(calls) == {"fsmg": 2}.get(name, 4), "nothing was done twice"
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_signal_in_training(config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_attack("ace", config("ace", "whole"))
    forwards: list[int] = []

    class Halting(LoraObjective):
        def forward(self, **batch: Any) -> Any:
            forwards.append(1)
            if len(forwards) == 3:
                signal.raise_signal(signal.SIGINT)
            return super().forward(**batch)

    with monkeypatch.context() as patch:
        patch.setattr(surrogate_module, "LoraObjective", Halting)
        # In the first of two steps of the last phase, and of a phase in between.
        for rounds, out in ((2, "run"), (3, "longer")):
            forwards.clear()
            with pytest.raises(Interrupted, match=f"after 3 of {2 * rounds} phases"):
                run_attack("ace", config("ace", out, rounds=rounds))
            assert len(forwards) == 3
    run_attack("ace", config("ace", "run", resume=True))
    assert_same(tmp_path / "run", tmp_path / "whole")
    run_attack("ace", config("ace", "longer", rounds=3, resume=True))
    run_attack("ace", config("ace", "longer-whole", rounds=3))
    assert_same(tmp_path / "longer", tmp_path / "longer-whole")


def test_a_kill_halfway(faces: Path, tmp_path: Path) -> None:
    """SIGKILL, which nobody can catch, to the real command."""
    words = [sys.executable, "-m", "lordfast.cli.main", "attack", "ace", "--model", "demo", "--images", str(faces)]
    words += ["--device", "cpu", "--rounds", "3", "--attack-steps", "2", "--train-steps", "1", "--batch-size", "2"]
    subprocess.run([*words, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    run = tmp_path / "run"
    process = subprocess.Popen([*words, "--out", str(run)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(run.glob("checkpoints/step-*")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (run / "summary.json").exists(), "it was over before it could be killed"
    subprocess.run([*words, "--out", str(run), "--resume"], check=True, capture_output=True)
    assert_same(run, tmp_path / "whole")


def test_other_images_are_refused(
    config: Callable[..., Any], faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descend = subject_module.descend

    def interrupted(*args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return descend(*args)

    with monkeypatch.context() as patch:
        patch.setattr(subject_module, "descend", interrupted)
        with pytest.raises(Interrupted):
            run_attack("ace", config("ace", "run"))
    first, second = sorted(faces.glob("*.png"))[:2]
    shutil.copy(second, first)
    with pytest.raises(ValueError, match=f"resume: inputs of the run .* changed .*images: {first.name} replaced"):
        run_attack("ace", config("ace", "run", resume=True))
    # A run of an earlier version has no record of its inputs; its checkpoint knows the images all the same.
    (tmp_path / "run" / "inputs.json").unlink()
    with pytest.raises(ValueError, match="resume: .* was saved for other images"):
        run_attack("ace", config("ace", "run", resume=True))


def test_the_surrogate_matters(config: Callable[..., Any], tmp_path: Path) -> None:
    """Where training changes nothing, ACE finds other images than where it does."""
    run_attack("ace", config("ace", "learns", surrogate_lr=1e-2))
    run_attack("ace", config("ace", "does-not", surrogate_lr=0.0))
    pairs = [[load_image(path) for path in sorted((tmp_path / run).glob("*.png"))] for run in ("learns", "does-not")]
    assert all((one != other).mean() > 0.01 for one, other in zip(*pairs, strict=True))


def test_sizes_and_alpha_together_with_a_surrogate(photos: Path, tmp_path: Path) -> None:
    config = ATTACKS["ace"].config(
        model="demo", images=photos / "sub", out=tmp_path / "run", device="cpu", size="original", rounds=1, **QUICK
    )
    assert run_attack("ace", config)["unchanged"] == 0
    for path in (photos / "sub").iterdir():
        if path.suffix in (".png", ".jpg"):
            name = "china.jpg.png" if path.suffix == ".jpg" else "china.png"
            assert load_image(tmp_path / "run" / name).shape == load_image(path).shape
