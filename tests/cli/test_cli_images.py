"""What folders of images hold that can't be used, and names that are no text, over all commands that read them."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from lordfast.cli.main import main
from lordfast.data import list_images, load_image, make_faces, save_png, write_folder

COMMANDS = {
    "images": ("attack", "pgd", "--model", "demo", "--images"),
    "images ": ("purify", "blur", "--images"),
    "images  ": ("pairs", "inpainting", "--images"),
    "masks": ("pairs", "inpainting", "--images", "FINE", "--masks"),
    "data": ("stage1", "--model", "demo", "--prompt", "x", "--data"),
    "instance_data": ("stage2", "--model", "demo", "--instance-prompt", "x", "--instance-data"),
    "class_data": (
        *("stage2", "--model", "demo", "--instance-prompt", "x", "--instance-data", "FINE"),
        *("--prior-preservation", "--class-prompt", "x", "--class-data"),
    ),
    "reference": ("evaluate", "--generated", "FINE", "--reference"),
    "attacked": ("transfer", "--to", "demo", "--prompt", "x", "--originals", "FINE", "--attacked"),
}


@pytest.mark.parametrize("argument", COMMANDS)
def test_images_of_other_formats_are_named(argument: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("fine", "mixed"):
        write_folder(make_faces(2, seed=0), tmp_path / folder)
    (tmp_path / "mixed" / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    words = [str(tmp_path / "fine") if word == "FINE" else word for word in COMMANDS[argument]]
    assert main([*words, str(tmp_path / "mixed"), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {argument.strip()}: ") and "1 of 3 images" in error and "phone.HEIC" in error
    assert not (tmp_path / "out").exists()


def test_skip_bad_goes_on_without_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(make_faces(2, seed=0), tmp_path / "me")
    names = [record.name for record in list_images(tmp_path / "me")]
    (tmp_path / "me" / names[0]).with_suffix(".CR2").write_bytes(b"II*\0")
    assert main(["purify", "blur", "--images", str(tmp_path / "me"), "--out", str(tmp_path / "out"), "--skip-bad"]) == 0
    captured = capsys.readouterr()
    assert ".CR2 files are not read" in captured.err and captured.out.startswith("2 images, ")
    assert [record.name for record in list_images(tmp_path / "out")] == names


def test_names_that_are_no_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As old zip files leave them: read, written, resumed and shown under the same bytes."""
    folder, name = os.fsdecode(b"f\xfcr"), os.fsdecode(b"M\xfcller")
    (tmp_path / folder).mkdir()
    save_png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), tmp_path / folder / "0.png")
    shutil.copy(tmp_path / folder / "0.png", tmp_path / folder / f"{name}.png")
    (tmp_path / folder / f"{name}.txt").write_text("a face")
    images = ["--images", str(tmp_path / folder), "--device", "cpu"]
    for command in (("purify", "blur"), ("pairs", "inpainting"), ("pairs", "super-resolution", "--factor", "2")):
        out = tmp_path / f"{command[-1]}-{folder}"
        assert main([*command, *images, "--out", str(out)]) == 0
        assert main([command[0], command[1], "--config", str(out / "config.yaml"), "--resume"]) == 0
        assert main(["report", str(out)]) == 0
        assert r"M\udcfcller" in (out / "report.html").read_text(encoding="utf-8")
        capfd.readouterr()
    pairs = list_images(tmp_path / f"2-{folder}" / "high")
    assert [(record.name, record.caption) for record in pairs] == [("0.png", None), (f"{name}.png", "a face")]
    (tmp_path / f"2-{folder}" / "high" / f"{name}.txt").unlink()
    np.testing.assert_array_equal(load_image(pairs[1].path), load_image(tmp_path / folder / "0.png"))
    # metadata.jsonl names the picture too.
    high, low = (list_images(tmp_path / f"2-{folder}")[i] for i in (1, 3))
    assert (high.name, high.caption, low.name) == (f"high/{name}.png", "a face", f"low/{name}.png")
