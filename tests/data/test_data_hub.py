"""Rows of a dataset: which columns, which rows, and what goes wrong. Real parquet files and folders, no network."""

import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from lordfast.data.hub import Columns, DatasetRequest, DatasetRow, check_request, find_columns, newest_commit, read_rows
from lordfast.data.images import BadImageError


def png(value: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (6 + value, 5), (value,) * len(mode)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """12 images, image i 6 + i pixels wide; a caption and one of three people each; two columns of images."""
    features = datasets.Features(
        {
            "number": datasets.Value("int64"),
            "photo": datasets.Image(),
            "mask": datasets.Image(),
            "prompt": datasets.Value("string"),
            "caption": datasets.List(datasets.Value("string")),
            "person": datasets.ClassLabel(names=["ann", "bob", "cy"]),
        }
    )
    columns = {
        "number": list(range(12)),
        "photo": [{"bytes": png(i), "path": f"{i}.png"} for i in range(12)],
        "mask": [{"bytes": png(100), "path": None}] * 12,
        "prompt": [f"prompt {i}" for i in range(12)],
        "caption": [[f"caption\n{i} ", "another"] if i else [] for i in range(12)],
        "person": [i % 3 if i != 5 else -1 for i in range(12)],
    }
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return path


def widths(request: DatasetRequest) -> list[int]:
    return [row.layers()[0].shape[1] - 6 for row in read_rows(request)[1]]


def test_rows_bring_image_caption_and_identity(parquet: Path) -> None:
    columns, found = read_rows(DatasetRequest(source=str(parquet), identity_column="person"))
    rows = list(found)
    assert columns == Columns("photo", "caption", "person")
    assert [row.number for row in rows] == list(range(12))
    for i, row in enumerate(rows):
        colours, alpha = row.layers()
        assert alpha is None and np.array_equal(colours, np.full((5, 6 + i, 3), i, np.uint8))
    assert [row.caption for row in rows[:3]] == [None, "caption 1", "caption 2"]
    assert [row.identity for row in rows] == ["ann", "bob", "cy", "ann", "bob", None, *["ann", "bob", "cy"] * 2]


def test_columns_can_be_named(parquet: Path) -> None:
    request = DatasetRequest(source=str(parquet), image_column="mask", caption_column="prompt")
    columns, rows = read_rows(request)
    assert columns == Columns("mask", "prompt", None)
    row = next(rows)
    assert (row.layers()[0].shape[1], row.caption, row.identity) == (106, "prompt 0", None)


def test_columns_that_are_not_there() -> None:
    request = DatasetRequest(source="owner/name")
    text = datasets.Value("string")
    assert find_columns(request, {"b": datasets.Image(), "prompt": text, "text": text}, datasets.Image) == Columns(
        "b", "text"
    )
    with pytest.raises(ValueError, match="image-column: owner/name has no column of images; its columns: text, url"):
        find_columns(request, {"text": text, "url": text}, datasets.Image)
    for what in ("image", "caption", "identity"):
        asked = DatasetRequest(source="owner/name", **{f"{what}_column": "x"})
        with pytest.raises(ValueError, match=f"{what}-column: owner/name has no column 'x'; its columns: i, text"):
            find_columns(asked, {"i": datasets.Image(), "text": text}, datasets.Image)


def test_a_caption_that_is_no_text(parquet: Path) -> None:
    rows = read_rows(DatasetRequest(source=str(parquet), caption_column="number"))[1]
    with pytest.raises(ValueError, match=r"expected text in 'number', row 0 of .* has a int"):
        next(rows)


def test_random_rows_depend_on_the_seed_alone(parquet: Path) -> None:
    def drawn(seed: int, buffer: int = 12) -> list[int]:
        return widths(DatasetRequest(source=str(parquet), choose="random", seed=seed, buffer=buffer))

    first = drawn(1)
    assert first == drawn(1) and first != drawn(2) and first != list(range(12))
    assert sorted(first) == sorted(drawn(1, buffer=3)) == list(range(12))
    # Of a buffer of three, the row at a place was among the three to come or the two left over.
    few = drawn(1, buffer=3)
    assert few != list(range(12)) and all(row <= place + 2 for place, row in enumerate(few))
    assert drawn(1, buffer=1) == widths(DatasetRequest(source=str(parquet), seed=3)) == list(range(12))


def test_random_rows_begin_in_a_random_file(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image()})
    for file in range(4):
        images = [{"bytes": png(10 * file + i), "path": None} for i in range(3)]
        datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(tmp_path / f"train-{file}.parquet")
    orders = set()
    for seed in range(6):
        found = widths(DatasetRequest(source=str(tmp_path), choose="random", seed=seed, buffer=1))
        assert sorted(found) == [10 * file + i for file in range(4) for i in range(3)]
        files = [width // 10 for width in found]
        assert files == sorted(files, key=files.index)
        orders.add(tuple(files))
    assert len(orders) > 2
    assert widths(DatasetRequest(source=str(tmp_path)))[:4] == [0, 1, 2, 10]


def test_folders_of_images_and_archives(tmp_path: Path) -> None:
    for i, person in enumerate(("ann", "bob")):
        (tmp_path / "people" / person).mkdir(parents=True)
        (tmp_path / "people" / person / f"{i}.png").write_bytes(png(i))
    request = DatasetRequest(source=str(tmp_path / "people"), identity_column="label")
    columns, rows = read_rows(request)
    assert columns == Columns("image", None, "label")
    assert [(row.identity, row.layers()[0].shape[1]) for row in rows] == [("ann", 6), ("bob", 7)]

    (tmp_path / "packed").mkdir()
    with zipfile.ZipFile(tmp_path / "packed" / "all.zip", "w") as archive:
        for i in range(2):
            archive.writestr(f"inside/{i}.png", png(i))
    assert widths(DatasetRequest(source=str(tmp_path / "packed"))) == [0, 1]


def test_images_without_content_are_named(tmp_path: Path) -> None:
    contents = [png(1), None, png(1)[:45], b""]
    images = [{"bytes": content, "path": None} if content is not None else None for content in contents]
    path = tmp_path / "bad.parquet"
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(path)
    rows = list(read_rows(DatasetRequest(source=str(path)))[1])
    rows[0].layers()
    for number, reason in enumerate(("no image", "OSError|truncated", "empty"), start=1):
        with pytest.raises(BadImageError, match=rf"row {number} of .*bad.parquet.*({reason})"):
            rows[number].layers()
    # A name that reads like an address of something in an archive.
    (tmp_path / "zip::1.png").write_bytes(png(1))
    assert DatasetRow(3, "row 3", str(tmp_path / "zip::1.png"), None, None).layers()[0].shape == (5, 7, 3)
    gone = DatasetRow(4, "row 4", str(tmp_path / "gone.png"), None, None)
    with pytest.raises(BadImageError, match=r"row 4: FileNotFoundError: .*gone.png"):
        gone.layers()


def test_a_dataset_on_the_hub_is_streamed_at_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    seen: list[int] = []

    def produce() -> Iterator[dict[str, Any]]:
        for i in range(100):
            seen.append(i)
            yield {"image": {"bytes": png(i % 5), "path": None}, "text": f"t{i}"}

    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})

    def load_dataset(*args: Any, **options: Any) -> datasets.IterableDataset:
        asked.append((*args, options))
        return datasets.IterableDataset.from_generator(produce, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    request = DatasetRequest(source="owner/name", split="test", subset="small", revision="main")
    rows = read_rows(request, "abc")[1]
    assert [next(rows).caption for _ in range(3)] == ["t0", "t1", "t2"]
    # What nobody asks for is not read.
    assert len(seen) <= 4
    read_rows(request)
    common = {"name": "small", "split": "test", "streaming": True}
    assert asked == [("owner/name", {**common, "revision": "abc"}), ("owner/name", {**common, "revision": "main"})]


def test_the_commit_is_the_hub_s_answer(monkeypatch: pytest.MonkeyPatch, parquet: Path) -> None:
    import huggingface_hub

    class Hub:
        def dataset_info(self, source: str, revision: str | None) -> Any:
            if source == "owner/gone":
                raise RuntimeError("no network")
            return type("Info", (), {"sha": f"sha of {source} at {revision}"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert newest_commit(DatasetRequest(source="owner/name", revision="v1")) == "sha of owner/name at v1"
    assert newest_commit(DatasetRequest(source="owner/gone")) is None
    assert newest_commit(DatasetRequest(source=str(parquet))) is None


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(RuntimeError("x"), OSError), (ConnectionError("x"), OSError), (ValueError("x"), ValueError)],
)
@pytest.mark.parametrize("late", [False, True])
def test_whatever_a_network_raises_is_a_clear_error(
    raised: Exception, expected: type[Exception], late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        features = {"image": datasets.Image()}  # noqa: RUF012

        def select_columns(self, names: list[str]) -> "Broken":
            return self

        def cast_column(self, name: str, kind: Any) -> "Broken":
            return self

        def __iter__(self) -> Iterator[Any]:
            raise raised

    def load_dataset(*args: Any, **options: Any) -> Broken:
        if not late:
            raise raised
        return Broken()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(expected, match="^source: owner/name: x$") as caught:
        next(read_rows(DatasetRequest(source="owner/name"))[1])
    assert caught.value.__cause__ is raised


def test_datasets_may_be_missing(monkeypatch: pytest.MonkeyPatch, parquet: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'lordfast\[datasets\]'"):
        read_rows(DatasetRequest(source=str(parquet)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "./nowhere"}, "source: './nowhere' does not exist; expected a hub id"),
        ({"source": "a/b/c"}, "source: 'a/b/c' does not exist"),
        ({"n": 0}, "n: expected at least 1, got 0"),
        ({"per_identity": 0, "identity_column": "x"}, "per-identity: expected at least 1, got 0"),
        ({"buffer": -1}, "buffer: expected at least 1, got -1"),
        ({"seed": -1}, "seed: expected a whole number from 0"),
        ({"choose": "last"}, "choose: expected first or random, got 'last'"),
        ({"per_identity": 2}, "per-identity: needs an identity-column"),
    ],
)
def test_requests_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_request(DatasetRequest(**{"source": "owner/name", **change}))
    assert str(caught.value).startswith(message)


def test_a_local_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a\n1\n")
    with pytest.raises(ValueError, match=r"rows.csv is a file; expected a hub id, a folder or a .parquet file"):
        read_rows(DatasetRequest(source=str(tmp_path / "rows.csv")))


def test_a_split_that_is_not_there(parquet: Path) -> None:
    request = DatasetRequest(source=str(parquet.parent), split="validation")
    with pytest.raises(ValueError, match=r"source: .*validation.*train"):
        read_rows(request)
