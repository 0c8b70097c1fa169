"""A resumed run and its inputs: what was added is made, what was changed is named, and nothing passes unseen."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from lordfast.cli.main import main
from lordfast.data import save_png

Run = Callable[..., str]
DEMO = ("--model", "demo", "--device", "cpu")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: four captioned pictures in ``me``."""
    monkeypatch.chdir(tmp_path)
    for i in range(4):
        save_png(np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8), tmp_path / "me" / f"{i}.png")
        (tmp_path / "me" / f"{i}.txt").write_text("a face")
    return tmp_path / "me"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """What a command prints; the status has to be `status`."""

    def call(*words: object, status: int = 0) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == status
        captured = capsys.readouterr()
        return captured.out + captured.err

    return call


GROWING = {
    "attack": ("attack", "pgd", *DEMO, "--attack-steps", 1, "--images", "me"),
    "purify": ("purify", "blur", "--images", "me"),
    "pairs": ("pairs", "super-resolution", "--images", "me", "--variants", 2, "--resolution", 32, "--crop", "random"),
}


@pytest.mark.parametrize("command", GROWING)
@pytest.mark.parametrize("finished", [True, False])
def test_an_added_image_is_made_like_the_others(
    command: str, finished: bool, photos: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    words = GROWING[command]
    # To resume what has not begun is to begin.
    run(*words, "--out", "out", "--resume")
    assert "inputs.json" not in caplog.text
    before = {path: path.read_bytes() for path in Path("out").rglob("*.png") if path.parent.name != "preview"}
    if not finished:
        Path("out/summary.json").unlink()
    # First in the order of names: every other place moves.
    shutil.copy("me/3.png", "me/+.png")
    run(*words, "--out", "out", "--resume")
    run(*words, "--out", "whole")
    whole = {path.relative_to("whole"): path.read_bytes() for path in Path("whole").rglob("*.png")}
    assert {path.relative_to("out"): path.read_bytes() for path in Path("out").rglob("*.png")} == whole
    assert all(path.read_bytes() == content for path, content in before.items())
    rows = [
        [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()] for out in ("out", "whole")
    ]
    key = "file_name" if command == "pairs" else "output"
    assert {row[key]: row["step"] for row in rows[0]} == {row[key]: row["step"] for row in rows[1]}
    summaries = [json.loads(Path(out, "summary.json").read_text()) for out in ("out", "whole")]
    for summary in summaries:
        del summary["seconds"]
    assert summaries[0] == summaries[1] and summaries[0]["images"] == 5
    assert run(*words, "--out", "out", "--resume") == run(*words, "--out", "whole", "--resume").replace("whole", "out")


def test_every_change_is_named(photos: Path, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    words = (*GROWING["purify"], "--out", "out", "--resume")
    run(*words[:-1])
    first = photos / "0.png"
    content, status = first.read_bytes(), first.stat()
    # Another file of its size and its time of modification.
    first.write_bytes(content[:-1] + b"?")
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "(images: 0.png replaced)" in run(*words, status=2)
    first.write_bytes(content)
    assert "4 images" in run(*words)
    (photos / "1.txt").write_text("a cat")
    (photos / "2.png").unlink()
    expected = (
        "inputs of the run in out changed since it began (images: 1.png has another caption; images: 2.png removed)"
    )
    assert f"{expected}; expected the same files. Put them back, or begin anew with" in run(*words, status=2)
    run(*words[:-1], "--overwrite")
    # Runs of earlier versions have no record.
    Path("out/inputs.json").unlink()
    (photos / "0.txt").write_text("a dog")
    assert "3 images" in run(*words)
    assert "out has no inputs.json, as runs of earlier versions" in caplog.text


def test_names_that_additions_would_change_are_refused(photos: Path, run: Run) -> None:
    (photos / "0.png").rename(photos / "0.jpg")
    for words in GROWING.values():
        run(*words, "--out", words[0])
    shutil.copy("me/1.png", "me/0.webp")
    for words in GROWING.values():
        assert "the images changed since the run began" in run(*words, "--out", words[0], "--resume", status=2)


def test_training_refuses_every_change(photos: Path, run: Run) -> None:
    prior = ("--prior-preservation", "--class-prompt", "y", "--class-images", 2)
    train = ("stage2", *DEMO, "--steps", 2, "--batch-size", 1, "--checkpoint-every", 1, "--instance-prompt", "x")
    words = (*train, *prior, "--instance-data", "me", "--no-tensorboard", "--out", "lora")
    run(*words)
    weights = Path("lora/pytorch_lora_weights.safetensors")
    content = weights.read_bytes()
    # As after an interruption.
    for path in (weights, Path("lora/summary.json")):
        path.unlink()
    shutil.rmtree("lora/checkpoints/step-00000002")
    picture = (photos / "0.png").read_bytes()
    shutil.copy("me/1.png", "me/0.png")
    assert "(instance_data: 0.png replaced)" in run(*words, "--resume", status=2)
    (photos / "0.png").write_bytes(picture)
    shutil.copy("me/1.png", "me/4.png")
    assert "(instance_data: 4.png added)" in run(*words, "--resume", status=2)
    (photos / "4.png").unlink()
    drawn = Path("lora/class_images/class-0000.png").read_bytes()
    shutil.copy("me/1.png", "lora/class_images/class-0000.png")
    assert "(class_data: class-0000.png replaced)" in run(*words, "--resume", status=2)
    Path("lora/class_images/class-0000.png").write_bytes(drawn)
    run(*words, "--resume")
    assert weights.read_bytes() == content


def test_weights_pictures_and_masks_count_too(photos: Path, run: Run) -> None:
    run("stage2", *DEMO, "--steps", 1, "--instance-prompt", "x", "--instance-data", "me", "--out", "lora")
    shutil.copytree("me", "masks")
    draw = ("generate", *DEMO, "--prompt", "x", "-n", 1, "--steps", 1, "--lora", "lora", "--out", "drawn")
    mist = ("attack", "mist", *DEMO, "--attack-steps", 1, "--images", "me", "--target", "masks/0.png", "--out", "mist")
    pairs = ("pairs", "inpainting", "--images", "me", "--masks", "masks", "--out", "pairs")
    measure = ("evaluate", "--generated", "me", "--reference", "masks", "--no-distribution", "--out", "measured")
    for words in (draw, mist, pairs, measure):
        run(*words)
    path = "lora/pytorch_lora_weights.safetensors"
    save_file({name: 2 * value for name, value in load_file(path).items()}, path)
    shutil.copy("me/1.png", "masks/0.png")
    shutil.copy("me/1.png", "masks/9.png")
    assert f"(lora: {Path(path).name} replaced)" in run(*draw, "--resume", status=2)
    assert "(target: 0.png replaced)" in run(*mist, "--resume", status=2)
    assert "(masks: 0.png replaced; masks: 9.png added)" in run(*pairs, "--resume", status=2)
    assert "(reference: 0.png replaced; reference: 9.png added)" in run(*measure, "--resume", status=2)
