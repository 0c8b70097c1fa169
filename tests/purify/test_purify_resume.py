"""A run that was interrupted goes on to the same bits, and logs every image once; the command tells how."""

import json
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lordfast.cli.main import main
from lordfast.purify import diffpure as diffpure_module
from lordfast.purify.registry import PURIFIERS
from lordfast.purify.run import run_purify
from lordfast.training import results
from lordfast.training.interrupt import Interrupted


@pytest.fixture
def start(config, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Purify four faces in batches of 3 and 1."""
    return lambda out, **options: run_purify(
        "diffpure", config("diffpure", out=tmp_path / out, start=50, steps=1, batch_size=3, **options)
    )


@pytest.fixture
def whole(start, tmp_path: Path) -> Path:
    """The run that nothing interrupted."""
    start("whole")
    return tmp_path / "whole"


def images(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.glob("*.png")}


def assert_same(run: Path, whole: Path) -> None:
    assert images(run) == images(whole) and len(images(run)) == 4
    found = [sorted((folder / "metrics.jsonl").read_text().splitlines()) for folder in (run, whole)]
    assert found[0] == found[1] and len(found[0]) == 4
    assert {p.name: p.read_bytes() for p in run.glob("*.txt")} == {p.name: p.read_bytes() for p in whole.glob("*.txt")}
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, whole)]
    for summary in summaries:
        del summary["seconds"]
    assert summaries[0] == summaries[1]


def press(monkeypatch: pytest.MonkeyPatch, number: signal.Signals = signal.SIGINT) -> None:
    purify = diffpure_module.diffpure

    def interrupted(*args: Any, **options: Any) -> Any:
        signal.raise_signal(number)
        return purify(*args, **options)

    monkeypatch.setattr(diffpure_module, "diffpure", interrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle(
    start, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    with monkeypatch.context() as patch:
        press(patch, number)
        with pytest.raises(Interrupted, match="after 1 of 2 batches"):
            start("run")
    assert len(images(tmp_path / "run")) == 3 and not (tmp_path / "run" / "summary.json").exists()
    start("run", resume=True)
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("saved", [0, 1, 3])
def test_a_kill_between_two_files(
    start, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: int
) -> None:
    save, count = results.save_png, 0

    def killed(*args: Any) -> None:
        nonlocal count
        if count == saved:
            raise KeyboardInterrupt
        count += 1
        save(*args)

    with monkeypatch.context() as patch:
        patch.setattr(results, "save_png", killed)
        with pytest.raises(KeyboardInterrupt):
            start("run")
    assert len(images(tmp_path / "run")) == saved
    start("run", resume=True)
    assert_same(tmp_path / "run", whole)


def test_finished_batches_are_not_purified_again(
    start, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "summary.json").unlink()
    sorted(run.glob("*.png"))[3].unlink()
    purify, sizes = diffpure_module.diffpure, []

    def counted(model: Any, batch: Any, **options: Any) -> Any:
        sizes.append(len(batch))
        return purify(model, batch, **options)

    monkeypatch.setattr(diffpure_module, "diffpure", counted)
    # The configs name different folders, which is what a moved run looks like.
    start("run", resume=True)
    assert sizes == [1]
    assert_same(run, whole)


def test_an_image_that_changed_in_between_is_named(start, whole: Path, faces: Path) -> None:
    (whole / "summary.json").unlink()
    first, second = sorted(faces.glob("*.png"))[:2]
    first.write_bytes(second.read_bytes())
    with pytest.raises(
        ValueError, match=rf"resume: inputs of the run in {whole} changed .*images: {first.name} replaced\); expected"
    ):
        start("whole", resume=True)


def test_the_command_and_how_it_goes_on(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = ["--images", str(faces), "--out", str(tmp_path / "run")]
    words = ["purify", "diffpure", "--model", "demo", *folders, "--device", "cpu", "--batch-size", "2"]
    with monkeypatch.context() as patch:
        press(patch)
        assert main([*words, "--strength", "0.05", "--steps", "1"]) == 130
    error = capsys.readouterr().err
    assert "Stopped after 1 of 2 batches" in error
    assert main(shlex.split(error.strip().splitlines()[-1])[1:]) == 0
    out = capsys.readouterr().out
    psnr = json.loads((tmp_path / "run" / "summary.json").read_text())["psnr"]
    assert f"4 images, {psnr:.2f} dB from the given ones: {tmp_path / 'run'}" in out


def test_the_list_of_purifiers(capsys: pytest.CaptureFixture) -> None:
    assert main(["purify"]) == 2
    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines() if line.startswith("  ")]
    assert [words[0] for words in lines] == list(PURIFIERS) and all(len(words) > 3 for words in lines)
    assert "purify: expected a name (jpeg, " in captured.err
    assert main(["purify", "--help"]) == 0
    assert main(["purify", "wash"]) == 2
    assert "purify: expected one of jpeg, gaussian-noise, " in capsys.readouterr().err
