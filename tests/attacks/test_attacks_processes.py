"""Attacks by several processes: the bits of one, whoever is killed, interrupted or fails."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lordfast.attacks import folder as folder_module
from lordfast.attacks.ace import AceConfig
from lordfast.attacks.pgd import PgdConfig
from lordfast.attacks.run import run_attack
from lordfast.cli.main import main
from lordfast.data import make_faces, write_folder
from lordfast.training import team as team_module
from lordfast.training.lora import LoraObjective

PGD = ["--attack-steps=2", "--batch-size=1", "--skip-bad"]
ACE = ["--attack-steps=1", "--train-steps=2", "--rounds=2", "--batch-size=1"]


pytestmark = pytest.mark.usefixtures("quick_probe")


@pytest.fixture
def command(faces: Path) -> Callable[..., Callable[[], int]]:
    """``command(name, out, *flags)``: the attack on the faces, to be called."""

    def make(name: str, out: Path, *flags: str) -> Callable[[], int]:
        words = ["attack", name, "--model=demo", f"--images={faces}", f"--out={out}", "--device=cpu", *flags]
        return lambda: main(words)

    return make


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four faces, and a fifth image that can't be read."""
    folder = tmp_path_factory.mktemp("data") / "faces"
    write_folder(make_faces(4, seed=7), folder)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    return folder


@pytest.fixture(scope="module")
def alone(faces: Path, quick_probe: None) -> Path:
    """PGD by one process; treat it as read-only."""
    out = faces.parent / "alone"
    run_attack(
        "pgd",
        PgdConfig(model="demo", images=faces, out=out, device="cpu", attack_steps=2, batch_size=1, skip_bad=True),
    )
    return out


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a process that is dead gives up soon."""
    monkeypatch.setattr(team_module, "PATIENCE", 1.0)


def results(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = {path.name: path.read_bytes() for path in (*run.glob("*.png"), *run.glob("*.txt"))}
    assert len(found) == 8
    found["metrics"] = (run / "metrics.jsonl").read_text()
    found["summary"] = json.loads((run / "summary.json").read_text())
    del found["summary"]["seconds"]
    # Neither notes nor rows of single processes stay behind.
    assert sorted(path.name for path in run.iterdir() if path.suffix not in (".png", ".txt")) == [
        "config.yaml",
        "environment.json",
        "inputs.json",
        "metrics.jsonl",
        "summary.json",
    ]
    return found


def when(call: int, number: int, work: Callable[[], int], note: Path | None = None) -> Callable[[], int]:
    """`work`, in which the second process gets a signal as it begins its batch `call`; batches are said aloud."""

    def run() -> int:
        attack_frames, calls = folder_module.attack_frames, []

        def signalled(*args: Any) -> Any:
            calls.append(1)
            if os.environ["RANK"] == "1" and len(calls) == call:
                os.kill(os.getpid(), number)
            print("one batch")
            made = attack_frames(*args)
            # The first process hears of what happened to the second before it is done with its batch.
            for _ in range(200 if note is not None and os.environ["RANK"] == "0" else 0):
                if list(note.glob("*/stop")):
                    break
                time.sleep(0.05)
            return made

        folder_module.attack_frames = signalled
        return work()

    return run


def test_a_killed_process_is_no_loss(command: Any, processes: Any, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = processes(when(2, signal.SIGKILL, command("pgd", run, *PGD)))
    assert first.wait() == [130, -signal.SIGKILL]
    assert "Go on with:" in first.output(0) and "--resume" in first.output(0)
    assert first.output(0).count("skipped") + first.output(1).count("skipped") == 1, "the bad image is named once"
    assert not (run / "summary.json").exists()

    left = 4 - len(list(run.glob("*.png")))
    second = processes(when(0, 0, command("pgd", run, *PGD, "--resume")))
    assert second.wait() == [0, 0], second.output(0)
    assert [second.output(rank).count("one batch") for rank in range(2)] == [-(-left // 2), left // 2], (
        "shared out anew"
    )
    assert second.output(0).count("4 images within") == 1 and "4 images" not in second.output(1)
    assert results(run) == results(alone)
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_a_signal_to_one_process_ends_all(command: Any, processes: Any, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = processes(when(1, signal.SIGTERM, command("pgd", run, *PGD), run / ".processes"))
    assert first.wait() == [130, 130]
    assert len(list(run.glob("*.png"))) == 2 and not (run / ".processes").exists()
    # One process takes over what two began.
    assert command("pgd", run, *PGD, "--resume")() == 0
    assert results(run) == results(alone)


def test_an_error_of_one_process_is_raised_by_all(command: Any, processes: Any, alone: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(alone, tmp_path / "run"))
    (alone / "summary.json").unlink()
    (alone / "00002.png").write_bytes((alone / "00001.png").read_bytes())
    (alone / "00003.png").unlink()
    # The finished images are checked by the processes in turn: the third is the first one's.
    started = processes(command("pgd", alone, *PGD, "--resume"))
    assert started.wait() == [2, 2]
    for rank in range(2):
        assert "00002.png is no perturbation of" in started.output(rank)
        assert "Traceback" not in started.output(rank)
    assert not (alone / "summary.json").exists() and not (alone / ".processes").exists()


def test_what_one_process_alone_can_see_is_an_error_of_all(command: Any, processes: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    started = processes(command("pgd", out, "--attack-steps=1"))
    assert started.wait() == [2, 2]
    assert all("broken.jpg" in started.output(rank) for rank in range(2))
    assert not out.exists()


def test_alternating(command: Any, processes: Any, faces: Path, tmp_path: Path) -> None:
    faces = Path(shutil.copytree(faces, tmp_path / "three", ignore=shutil.ignore_patterns("00003*", "broken*")))
    flags = [*ACE, f"--images={faces}"]
    # Three batches for two processes: one of them has nothing to do in the second round.
    whole = AceConfig(
        model="demo",
        images=faces,
        out=tmp_path / "whole",
        device="cpu",
        attack_steps=1,
        train_steps=2,
        rounds=2,
        batch_size=1,
    )
    run_attack("ace", whole)

    def interrupted() -> int:
        forward, calls = LoraObjective.forward, []

        def press(self: Any, **batch: Any) -> Any:
            calls.append(1)
            # In the second phase of training.
            if os.environ["RANK"] == "1" and len(calls) == 3:
                signal.raise_signal(signal.SIGINT)
            return forward(self, **batch)

        LoraObjective.forward = press  # type: ignore[method-assign]
        return command("ace", tmp_path / "run", *flags)()

    first = processes(interrupted)
    assert first.wait() == [130, 130], first.output(0)
    assert "Stopped after 3 of 4 phases" in first.output(0)
    assert not list((tmp_path / "run").glob("*.png"))
    second = processes(command("ace", tmp_path / "run", *flags, "--resume"))
    assert second.wait() == [0, 0], second.output(0)
    for path in sorted((tmp_path / "whole").glob("*.png")):
        assert path.read_bytes() == (tmp_path / "run" / path.name).read_bytes(), path.name
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "run")]
    assert rows[0] == rows[1] and rows[0].count("\n") == 3
