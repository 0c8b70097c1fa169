"""A dataset as a folder: what is in it, when it is made, reused, resumed or refused."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lordfast.data.dataset as module
from lordfast.data import BadImageError, DatasetRequest, list_images, load_image, materialise
from lordfast.data.dataset import identity_folder
from lordfast.data.hub import Columns, DatasetRow


def jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6 + value, 5), (value, 2 * value, 3 * value)).save(buffer, "JPEG", quality=100)
    return buffer.getvalue()


class Source:
    """Stands in for a dataset on the hub: its rows, how many of them were read, of which commits, and what is next."""

    def __init__(self) -> None:
        self.rows = [(jpeg(i), f"face {i}" if i != 3 else None, "abc"[i % 3]) for i in range(9)]
        self.commit = "first"
        self.opened: list[str | None] = []
        self.read = 0

    def newest_commit(self, request: DatasetRequest) -> str:
        return self.commit

    def read_rows(self, request: DatasetRequest, commit: str | None) -> tuple[Columns, Iterator[DatasetRow]]:
        self.opened.append(commit)
        who = request.identity_column

        def rows() -> Iterator[DatasetRow]:
            for number, (image, caption, identity) in enumerate(self.rows):
                self.read += 1
                yield DatasetRow(number, f"row {number}", image, caption, identity if who else None)

        return Columns("image", "text", who), rows()


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    source = Source()
    monkeypatch.setattr(module, "newest_commit", source.newest_commit)
    monkeypatch.setattr(module, "read_rows", source.read_rows)
    return source


def request(**options: Any) -> DatasetRequest:
    return DatasetRequest(**{"source": "owner/name", **options})


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_images_captions_and_origin(source: Source, tmp_path: Path) -> None:
    folder = materialise(request(n=5), tmp_path / "a" / "out")
    assert folder == tmp_path / "a" / "out"
    records = list_images(folder)
    assert [record.name for record in records] == [f"{i:06d}.png" for i in range(5)]
    assert [record.caption for record in records] == ["face 0", "face 1", "face 2", None, "face 4"]
    for i, record in enumerate(records):
        with Image.open(io.BytesIO(source.rows[i][0])) as original:
            assert np.array_equal(load_image(record.path), np.array(original))
    assert source.read == 5
    origin = json.loads((folder / "dataset.json").read_text())
    assert (origin["commit"], origin["images"], origin["identities"]) == ("first", 5, {})
    assert origin["request"]["source"] == "owner/name" and origin["request"]["n"] == 5
    assert origin["columns"] == {"image": "image", "caption": "text", "identity": None}
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_a_sub_folder_for_each_identity(source: Source, tmp_path: Path) -> None:
    folder = materialise(request(identity_column="who", per_identity=2, n=5), tmp_path / "out")
    assert [record.name for record in list_images(folder)] == [
        "a/000000.png",
        "a/000003.png",
        "b/000001.png",
        "b/000004.png",
        "c/000002.png",
    ]
    # Each stands alone, captions included.
    assert [record.caption for record in list_images(folder / "b")] == ["face 1", "face 4"]
    assert json.loads((folder / "dataset.json").read_text())["identities"] == {"a": 2, "b": 2, "c": 1}
    everyone = materialise(request(identity_column="who", per_identity=2), tmp_path / "all")
    assert len(list_images(everyone)) == 6


def test_identities_become_names_of_folders(source: Source, tmp_path: Path) -> None:
    names = ["Ann Lee", "n000002", "../up", "a/b", "a_b", "a?b", ".hidden", "..", "été", "x" * 300, "end.", "_a", " a"]
    source.rows = [(jpeg(i), f"of {name}", name) for i, name in enumerate(names)]
    folder = materialise(request(identity_column="who"), tmp_path / "out")
    assert [identity_folder(name) for name in names[:2]] == names[:2] and identity_folder("été") == "été"
    assert len(list(folder.iterdir())) == len(names) + 1
    assert {record.caption for record in list_images(folder)} == {f"of {name}" for name in names}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_same_request_is_read_once(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORDFAST_CACHE", str(tmp_path / "cache"))
    folder = materialise(request(n=2))
    assert folder.parent == tmp_path / "cache" / "datasets" and folder.name.startswith("owner-name-")
    before = content(folder)
    source.commit = "second"
    # Neither the seed of a choice that is not random nor what to do about bad images makes another folder.
    assert materialise(request(n=2, seed=5, buffer=7, skip_bad=True)) == folder
    assert content(folder) == before and source.opened == ["first"]
    others = [
        {"n": 3},
        {"n": 2, "split": "test"},
        {"n": 2, "subset": "x"},
        {"n": 2, "revision": "v1"},
        {"n": 2, "choose": "random"},
        {"n": 2, "choose": "random", "seed": 1},
        {"n": 2, "choose": "random", "buffer": 9},
        {"n": 2, "caption_column": "x"},
        {"n": 2, "identity_column": "x"},
        {"n": 2, "source": "owner/other"},
    ]
    assert len({materialise(request(**other)) for other in others} | {folder}) == len(others) + 1


def test_a_local_source_that_changed_is_read_again(source: Source, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    (local / "rows.parquet").write_bytes(b"1")
    first = materialise(request(source=str(local), n=1))
    assert materialise(request(source=str(local), n=1)) == first
    (local / "rows.parquet").write_bytes(b"22")
    assert materialise(request(source=str(local), n=1)) != first
    assert len(source.opened) == 2


def test_interrupted_work_goes_on_with_the_same_commit(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = materialise(request(n=6, identity_column="who"), tmp_path / "whole")

    def stop(done: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        materialise(request(n=6, identity_column="who"), folder, on_image=stop)
    assert not folder.exists()

    source.commit = "second"
    decoded: list[int] = []
    layers = DatasetRow.layers
    monkeypatch.setattr(DatasetRow, "layers", lambda row: decoded.append(row.number) or layers(row))
    seen: list[int] = []
    assert materialise(request(n=6, identity_column="who"), folder, on_image=seen.append) == folder
    assert decoded == [4, 5] and seen == [1, 2, 3, 4, 5, 6]
    assert source.opened == ["first"] * 3
    assert content(folder) == content(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_remains_of_another_request_are_not_taken_over(source: Source, tmp_path: Path) -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        materialise(request(n=2), tmp_path / "out", on_image=stop)
    source.rows[0] = (jpeg(50), "another", "a")
    source.commit = "second"
    folder = materialise(request(n=1), tmp_path / "out")
    assert load_image(folder / "000000.png").shape[1] == 56
    assert source.opened == ["first", "second"]


def test_bad_images_are_named_or_passed_over(source: Source, tmp_path: Path) -> None:
    source.rows[1] = (b"no image", "bad", "a")
    with pytest.raises(BadImageError, match="row 1"):
        materialise(request(n=3), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    named: list[BadImageError] = []
    folder = materialise(request(n=3, skip_bad=True), tmp_path / "out", on_bad=named.append)
    assert [record.name for record in list_images(folder)] == ["000000.png", "000002.png", "000003.png"]
    assert ["row 1" in str(error) for error in named] == [True]
    assert "row 1" in json.loads((folder / "dataset.json").read_text())["skipped"][0]

    source.rows = [(b"no image", None, "a")]
    with pytest.raises(ValueError, match=r"none of its images can be read; the first: .*row 0"):
        materialise(request(skip_bad=True), tmp_path / "none")
    source.rows = []
    with pytest.raises(ValueError, match="source: owner/name, split train: it has no rows"):
        materialise(request(), tmp_path / "none")


def test_an_image_without_its_identity_is_a_bad_one(source: Source, tmp_path: Path) -> None:
    source.rows[1] = (jpeg(1), "whose?", None)
    with pytest.raises(BadImageError, match="row 1: column 'who' does not say who it is"):
        materialise(request(identity_column="who"), tmp_path / "out")
    folder = materialise(request(identity_column="who", skip_bad=True, n=2), tmp_path / "out")
    assert [record.name for record in list_images(folder)] == ["a/000000.png", "c/000002.png"]


def test_folders_that_hold_something_else(source: Source, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"out: .*mine is there and was not made of a dataset"):
            materialise(request(), tmp_path / "mine", overwrite=overwrite)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="out: .*file is there"):
        materialise(request(), tmp_path / "file")
    (tmp_path / "empty").mkdir()
    folder = materialise(request(n=2), tmp_path / "empty")
    with pytest.raises(ValueError, match=r"made of another dataset \(n: 2 -> 3\); --overwrite replaces it"):
        materialise(request(n=3), folder)
    assert len(list_images(folder)) == 2
    assert len(list_images(materialise(request(n=1), folder, overwrite=True))) == 1


def test_the_old_folder_stays_until_the_new_one_is_there(source: Source, tmp_path: Path) -> None:
    folder = materialise(request(n=2), tmp_path / "out")
    source.rows[4] = (b"no image", None, "a")
    before = content(folder)
    with pytest.raises(BadImageError):
        materialise(request(n=5), folder, overwrite=True)
    assert content(folder) == before


def test_a_folder_in_its_own_source(source: Source, tmp_path: Path) -> None:
    for folder in (tmp_path / "inside", tmp_path, tmp_path.parent):
        with pytest.raises(ValueError, match="lie in each other"):
            materialise(request(source=str(tmp_path)), folder, overwrite=True)
    assert source.opened == [] and list(tmp_path.iterdir()) == []


def test_the_working_folder_links_and_mount_points(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "ahead").symlink_to(tmp_path / "later")
    assert materialise(request(n=1), tmp_path / "link") == real
    assert materialise(request(n=2), tmp_path / "link", overwrite=True) == real
    assert materialise(request(n=1), tmp_path / "ahead") == tmp_path / "later"
    assert [len(list_images(tmp_path / name)) for name in ("link", "ahead")] == [2, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ahead", "later", "link", "real"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert materialise(request(n=1), ".") == tmp_path / "here"
    monkeypatch.chdir(tmp_path)
    assert len(list_images(tmp_path / "here")) == 1
    read = source.read
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(module.os.path, "ismount", lambda path: Path(path).name in ("disk", "here"))
    with pytest.raises(ValueError, match="out: .*disk is a mount point, .*expected a folder inside it"):
        materialise(request(n=1), tmp_path / "disk")
    # What is in one already is taken as it is.
    assert materialise(request(n=1), tmp_path / "here") == tmp_path / "here"
    assert source.read == read and not list((tmp_path / "disk").iterdir())


@pytest.mark.parametrize("local", [False, True])
def test_what_was_read_without_a_known_commit_is_not_gone_on_with(source: Source, tmp_path: Path, local: bool) -> None:
    source.commit = None  # type: ignore[assignment]
    (tmp_path / "rows.parquet").write_bytes(b"1")
    wanted = request(n=3, **({"source": str(tmp_path / "rows.parquet")} if local else {}))

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        materialise(wanted, tmp_path / "out", on_image=stop)
    source.rows[0] = (jpeg(50), "another", "a")
    source.commit = "second"
    folder = materialise(wanted, tmp_path / "out")
    # A local file is known by its size and time.
    assert load_image(folder / "000000.png").shape[1] == (6 if local else 56)
    assert source.opened == ([None, None] if local else [None, "second"])


def test_only_one_of_two_makes_it(source: Source, tmp_path: Path) -> None:
    second_works = threading.Event()
    second: list[threading.Thread] = []

    def work(on_image: Callable[[int], None]) -> None:
        materialise(request(n=2), tmp_path / "out", on_image=on_image)

    def at_first_image(done: int) -> None:
        if not second:
            second.append(threading.Thread(target=work, args=(lambda done: second_works.set(),)))
            second[0].start()
            # Long enough for the other to come here, were nothing in its way.
            second_works.wait(0.3)

    work(at_first_image)
    second[0].join()
    assert not second_works.is_set() and source.opened == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
