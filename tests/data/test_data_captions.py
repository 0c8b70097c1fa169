"""Where captions come from, which goes first, and what is said when they are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from lordfast.data import list_images, save_png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "sub/c.png"):
        save_png(np.zeros((2, 2, 3), np.uint8), tmp_path / name)
    return tmp_path


def write_metadata(path: Path, *rows: dict[str, object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def captions(folder: Path) -> dict[str, str | None]:
    return {record.name: record.caption for record in list_images(folder)}


def test_text_files_beside_the_images(folder: Path) -> None:
    (folder / "a.txt").write_text("  a photo of a person \n")
    (folder / "sub" / "c.txt").write_bytes("\ufeffzwei\r\nZeilen, schön\r\n".encode())
    assert captions(folder) == {"a.png": "a photo of a person", "b.png": None, "sub/c.png": "zwei Zeilen, schön"}


def test_metadata_also_in_sub_folders(folder: Path) -> None:
    write_metadata(
        folder / "metadata.jsonl",
        {"file_name": "a.png", "text": "from the top", "width": 2},
        {"file_name": "./sub/c.png", "text": "from the top"},
    )
    assert captions(folder) == {"a.png": "from the top", "b.png": None, "sub/c.png": "from the top"}
    write_metadata(folder / "sub" / "metadata.jsonl", {"file_name": "c.png", "text": "from near"})
    assert captions(folder)["sub/c.png"] == "from near"


def test_text_file_goes_before_metadata_and_prompt_before_all(folder: Path) -> None:
    write_metadata(
        folder / "metadata.jsonl", {"file_name": "a.png", "text": "row"}, {"file_name": "b.png", "text": "row"}
    )
    (folder / "a.txt").write_text("beside")
    (folder / "b.txt").write_text(" \n")
    assert captions(folder) == {"a.png": "beside", "b.png": "row", "sub/c.png": None}
    assert {record.caption for record in list_images(folder, prompt="one for all")} == {"one for all"}
    assert {record.caption for record in list_images(folder, prompt="", captions="required")} == {""}


def test_required_names_the_images_and_the_ways(folder: Path) -> None:
    (folder / "a.txt").write_text("caption")
    with pytest.raises(ValueError, match=r"2 of 3 images .* b\.png, sub/c\.png") as caught:
        list_images(folder, captions="required")
    for way in ("prompt", "b.txt", "metadata.jsonl", '"file_name": "b.png"'):
        assert way in str(caught.value)
    (folder / "b.txt").write_text("caption")
    write_metadata(folder / "metadata.jsonl", {"file_name": "sub/c.png", "text": "c"})
    assert [record.caption for record in list_images(folder, captions="required")] == ["caption", "caption", "c"]


def test_required_shortens_a_long_list(folder: Path) -> None:
    for index in range(9):
        save_png(np.zeros((2, 2, 3), np.uint8), folder / f"x{index}.png")
    with pytest.raises(ValueError, match=r"12 of 12 .* no caption: a\.png, b\.png, sub/c\.png, \.\.\.") as caught:
        list_images(folder, captions="required")
    assert "x5.png" not in str(caught.value)


def test_ignore_and_prompt_do_not_read_caption_files(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text("{broken")
    (folder / "a.txt").write_bytes(b"\xff\xfe\xff")
    assert [record.caption for record in list_images(folder, captions="ignore")] == [None] * 3
    assert [record.caption for record in list_images(folder, prompt="p")] == ["p"] * 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "line 3: not valid JSON"),
        ('["a.png"]', 'line 3: expected an object with a string "file_name"'),
        ('{"text": "x"}', 'line 3: expected an object with a string "file_name"'),
        ('{"file_name": 5, "text": "x"}', 'line 3: expected an object with a string "file_name"'),
        ('{"file_name": "b.png", "text": 5}', 'line 3: expected "text" to be a string, got int'),
        (r'{"file_name": "b.png", "text": "a \ud83d"}', 'line 3: expected "text" to be text, got half of a surrogate'),
        ('{"file_name": "gone.png", "text": "x"}', 'line 3: names "gone.png", which does not exist'),
        ('{"file_name": "note.md", "text": "x"}', 'line 3: names "note.md", which is no image'),
        ('{"file_name": "a.png", "text": "x"}', 'line 3: names "a.png" again, first on line 1'),
    ],
)
def test_malformed_metadata_names_the_line(folder: Path, line: str, reason: str) -> None:
    (folder / "note.md").write_text("x")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "fine"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=r"metadata\.jsonl") as caught:
        list_images(folder)
    assert reason in str(caught.value)


def test_text_that_is_not_utf8(folder: Path) -> None:
    (folder / "a.txt").write_bytes("schön".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8"):
        list_images(folder)


def test_metadata_without_text_gives_no_caption(folder: Path) -> None:
    write_metadata(folder / "metadata.jsonl", {"file_name": "a.png"}, {"file_name": "b.png", "text": "  "})
    assert set(captions(folder).values()) == {None}


def test_line_separators_inside_json_strings(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one\u2028two"}\r\n', encoding="utf-8")
    assert captions(folder)["a.png"] == "one two"


def test_every_usual_place(folder: Path) -> None:
    """Text files in their order, whatever their case; metadata as JSON lines, CSV and parquet, in any usual column."""
    (folder / "a.TXT").write_text("upper")
    (folder / "b.png.txt").write_text("whole name")
    (folder / "sub" / "C.Caption").write_text("kohya")
    assert captions(folder) == {"a.png": "upper", "b.png": "whole name", "sub/c.png": "kohya"}
    (folder / "a.txt").write_text("exact")
    (folder / "b.caption").write_text("kohya")
    (folder / "sub" / "c.txt").write_text(" ")
    assert captions(folder) == {"a.png": "exact", "b.png": "kohya", "sub/c.png": "kohya"}
    for path in [*folder.glob("*.[tTcC]*[tTn]"), *folder.glob("sub/*.[tC]*")]:
        path.unlink()

    (folder / "metadata.csv").write_text('File_Name,Caption,text\na.png,"two\nlines, one",\nb.png,,from csv\n')
    write_metadata(folder / "metadata.jsonl", {"file_name": "b.png", "prompt": "from jsonl", "caption": None})
    table = pyarrow.table({"file_name": ["c.png"], "prompt": [["first", "second"]], "caption": [None]})
    parquet.write_table(table, folder / "sub" / "METADATA.parquet")
    assert captions(folder) == {"a.png": "two lines, one", "b.png": "from jsonl", "sub/c.png": "first"}
    (folder / "metadata.csv").write_text("name,text\na.png,x\n")
    with pytest.raises(ValueError, match=r'metadata\.csv, line 2: expected an object with a string "file_name"'):
        list_images(folder)
    (folder / "metadata.csv").unlink()
    (folder / "sub" / "METADATA.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"METADATA\.parquet is no readable parquet file"):
        list_images(folder)


def test_text_of_a_whole_name_belongs_to_the_nearer_image(folder: Path) -> None:
    save_png(np.zeros((2, 2, 3), np.uint8), folder / "a.png.png")
    (folder / "a.png.txt").write_text("of a.png.png")
    assert captions(folder) == {"a.png": None, "a.png.png": "of a.png.png", "b.png": None, "sub/c.png": None}


def test_images_without_caption_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    captions(folder)
    assert not caplog.messages
    (folder / "a.txt").write_text("a")
    list_images(folder, captions="ignore")
    list_images(folder, prompt="p")
    assert not caplog.messages
    captions(folder)
    assert caplog.messages == [f"2 of 3 images in {folder} have no caption, so an empty one: b.png, sub/c.png"]
