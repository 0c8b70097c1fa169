"""``lordfast dataset`` from the command line, on a real parquet file."""

import io
import re
import shlex
import signal
from pathlib import Path

import datasets
import pytest
from PIL import Image

import lordfast.data.dataset as dataset
from lordfast.cli.main import main
from lordfast.data import list_images


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    images = []
    for i in range(5):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (i, i, i)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    images[1] = {"bytes": b"no image", "path": None}
    rows = {"image": images, "text": [f"face {i}" for i in range(5)], "who": list("ababa")}
    features = {"image": datasets.Image(), "text": datasets.Value("string"), "who": datasets.Value("string")}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def test_a_folder_is_made_and_found_again(parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [
        "dataset",
        str(parquet),
        "-n",
        "3",
        "--identity-column",
        "who",
        "--skip-bad",
        "--out",
        str(tmp_path / "out"),
    ]
    capsys.readouterr()
    assert main(args) == 0
    printed = capsys.readouterr()
    assert printed.out == f"3 images: {tmp_path / 'out'}\n" and "skipped cannot read image row 1" in printed.err
    records = list_images(tmp_path / "out")
    assert [(record.name, record.caption) for record in records] == [
        ("a/000000.png", "face 0"),
        ("a/000002.png", "face 2"),
        ("b/000003.png", "face 3"),
    ]
    assert main(args) == 0
    assert capsys.readouterr().out == f"there already: {tmp_path / 'out'}\n"
    assert main([*args, "-n", "1"]) == 2
    assert "(n: 3 -> 1); --overwrite replaces it" in capsys.readouterr().err and len(list_images(tmp_path / "out")) == 3
    assert main([*args, "-n", "1", "--overwrite"]) == 0
    assert len(list_images(tmp_path / "out")) == 1


def test_ctrl_c_prints_the_line_that_goes_on(
    parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = dataset.save_png

    def pressed(*args: object) -> None:
        save(*args)
        if Path(str(args[1])).stem == "000002":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(dataset, "save_png", pressed)
    assert main(["dataset", str(parquet), "--skip-bad", "--out", str(tmp_path / "an out")]) == 130
    error = capsys.readouterr().err
    assert "Stopped after 2 images." in error and not (tmp_path / "an out").exists()
    again = shlex.split(error.splitlines()[-1])
    assert again[0] == "lordfast" and main(again[1:]) == 0
    assert len(list_images(tmp_path / "an out")) == 4


def test_bad_input_ends_with_2(parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    for args, message in {
        ("a/b/c", *out): "source: 'a/b/c' does not exist",
        (str(parquet), "--image-column", "x", *out): "has no column 'x'; its columns: image, text, who",
        (str(parquet), *out): "cannot read image row 1",
        (str(parquet), "-n", "0", *out): "n: expected at least 1, got 0",
    }.items():
        assert main(["dataset", *args]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: lordfast dataset ")
    blocks = re.split(r"\n.{1,2}(?=-n |--[a-z])", text)[1:]
    bare = [block.split()[0] for block in blocks if not re.search(r"[a-z]{2,}[^()]*\.", block.partition(" ")[2])]
    assert len(blocks) > 10 and bare == []
