"""Bad input: exit status 2, one clear line on standard error, and nothing written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lordfast.cli.main import main
from lordfast.data import list_images, save_png

Run = Callable[..., str]


@pytest.fixture
def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that has to fail; returns the line that it printed."""

    def run(*args: str, out: Path | None = None) -> str:
        target = out or tmp_path / "out"
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        capsys.readouterr()
        assert main([*args, "--out", str(target), "--device", "cpu"]) == 2
        captured = capsys.readouterr()
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        assert captured.out == ""
        lines = captured.err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ")
        return lines[0]

    return run


COMMANDS = {
    "attack": ("attack", "pgd", "--model", "demo", "--prompt", "x", "--images"),
    "stage1": ("stage1", "--model", "demo", "--prompt", "x", "--data"),
    "stage2": ("stage2", "--model", "demo", "--instance-prompt", "x", "--instance-data"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_missing_empty_or_a_file(command: str, refuse: Run, tmp_path: Path) -> None:
    assert "does not exist" in refuse(*COMMANDS[command], str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "no images in" in refuse(*COMMANDS[command], str(tmp_path / "empty"))
    (tmp_path / "file").touch()
    assert "expected a folder of images" in refuse(*COMMANDS[command], str(tmp_path / "file"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_corrupt_image_is_named_and_can_be_skipped(
    command: str, refuse: Run, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = list_images(faces)[0].path.read_bytes()
    (faces / "half.png").write_bytes(good[: len(good) // 2])
    assert "half.png" in refuse(*COMMANDS[command], str(faces))
    small = ["--attack-steps", "1"] if command != "stage2" else []
    small += ["--steps", "1", "--batch-size", "1", "--no-tensorboard"] if command != "attack" else []
    args = [*COMMANDS[command], str(faces), "--skip-bad", "--out", str(tmp_path / "out"), "--device", "cpu", *small]
    assert main(args) == 0
    captured = capsys.readouterr()
    assert "half.png" in captured.err
    assert captured.out.startswith("4 images") or " on 4 " in captured.out


@pytest.mark.parametrize("command", ["attack", "stage1"])
@pytest.mark.parametrize("eps", ["-8/255", "8", "much", "nan", "1/0"])
def test_a_budget_that_is_none(command: str, eps: str, refuse: Run, faces: Path) -> None:
    assert "eps" in refuse(*COMMANDS[command], str(faces), f"--eps={eps}")


def test_a_model_that_is_none(refuse: Run, faces: Path, tmp_path: Path) -> None:
    generate = ("generate", "--prompt", "x", "--model")
    assert "holds no model_index.json" in refuse(*generate, str(faces))
    assert "does not exist" in refuse(*generate, str(tmp_path / "nowhere"))
    assert "is a file" in refuse(*generate, str(list_images(faces)[0].path))


def test_the_folder_of_another_run_or_of_somebody_else(refuse: Run, faces: Path, tmp_path: Path) -> None:
    args = [*COMMANDS["stage2"], str(faces)]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for more in ((), ("--overwrite",), ("--resume",)):
        assert "is not empty and holds no run" in refuse(*args, *more, out=tmp_path / "mine")
    done = tmp_path / "done"
    small = ["--steps", "1", "--batch-size", "1", "--no-tensorboard"]
    assert main([*args, "--out", str(done), "--device", "cpu", *small]) == 0
    assert "holds a run already" in refuse(*args, *small, out=done)
    assert "lr: 0.0001 -> 0.5" in refuse(*args, *small, "--resume", "--lr", "0.5", out=done)
    assert "belongs to 'lordfast stage2'" in refuse(*COMMANDS["stage1"], str(faces), "--resume", out=done)


def test_lord_and_lora_folders_that_hold_none(refuse: Run, faces: Path, tmp_path: Path) -> None:
    generate = ("generate", "--model", "demo", "--prompt", "x")
    assert "no LoRD adapter" in refuse(*generate, "--lord", str(faces))
    assert "lora: " in refuse(*generate, "--lora", str(faces))
    (tmp_path / "junk.safetensors").write_bytes(b"\0" * 20)
    assert "junk.safetensors" in refuse(*generate, "--lora", str(tmp_path / "junk.safetensors"))
    assert "junk.safetensors" in refuse(*generate, "--lord", str(tmp_path / "junk.safetensors"))


def test_an_unknown_device_and_attack(refuse: Run, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMANDS["stage2"], str(faces), "--out", "x", "--device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err
    assert main(["attack", "pdg"]) == 2
    assert "expected one of fgsm, pgd, mist," in capsys.readouterr().err


def test_captions_that_are_missing(refuse: Run, tmp_path: Path) -> None:
    save_png(np.zeros((64, 64, 3), np.uint8), tmp_path / "bare" / "a.png")
    assert "a.png" in refuse("stage1", "--model", "demo", "--data", str(tmp_path / "bare"))
