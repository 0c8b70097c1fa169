"""webdataset archives in, archives out: names and other members kept, bounded memory, each whole or not there."""

import gc
import io
import json
import signal
import tarfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lordfast.attacks import archives as archives_module
from lordfast.attacks import folder as folder_module
from lordfast.attacks.ace import AceConfig
from lordfast.attacks.pgd import PgdConfig
from lordfast.attacks.run import run_attack
from lordfast.cli.main import main
from lordfast.data import make_faces
from lordfast.data.archives import find_archives, read_samples
from lordfast.training.interrupt import Interrupted

pytestmark = pytest.mark.usefixtures("quick_probe")


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def write(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pattern of three archives of two faces each, with captions, labels and names of their own."""
    folder = tmp_path_factory.mktemp("archives")
    for number in range(3):
        members = [("__meta__.json", b"{}"), ("README", b"no sample")]
        for i, face in enumerate(make_faces(2, seed=number)):
            key = f"sub/{number}-{i}"
            members += [(f"{key}.JPG", encoded(face.image, "JPEG")), (f"{key}.txt", face.caption.encode())]
            members += [(f"{key}.seg.json", b'{"a": 1}')]
        write(folder / f"faces-{number:03d}.tar", members)
    return str(folder / "faces-{000..002}.tar")


@pytest.fixture
def attack(archives: str, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    return lambda out, **options: _attack(archives, tmp_path / out, **options)


def _attack(archives: str, out: Path, **options: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"model": "demo", "images": Path(archives), "device": "cpu"}
    fields |= {"attack_steps": 1, "batch_size": 1}
    return run_attack("pgd", PgdConfig(out=out, **(fields | options)))


@pytest.fixture(scope="module")
def whole(archives: str, quick_probe: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that one process made without an interruption; treat it as read-only."""
    _attack(archives, out := tmp_path_factory.mktemp("whole") / "run")
    return out


def contents(run: Path) -> dict[str, bytes]:
    assert not [path for path in run.rglob(".*") if path.is_file()]
    return {
        path.name: path.read_bytes() for path in (*run.glob("*.tar"), *run.glob("metrics*/*"), run / "metrics.jsonl")
    }


def test_the_archives_are_attacked_and_keep_everything_else(archives: str, whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["images"] == 6 and summary["skipped"] == 0 and summary["loss_attacked"] > summary["loss_clean"]
    captions = []
    for given in find_archives(archives):
        before, after = list(read_samples(given)), list(read_samples(whole / given.name))
        assert [sample.key for sample in after] == [sample.key for sample in before] and len(after) == 2
        for old, new in zip(before, after, strict=True):
            assert list(new.members) == ["png", "txt", "seg.json"] and next(iter(old.members)) == "JPG"
            assert new.members["txt"] == old.members["txt"] and new.members["seg.json"] == old.members["seg.json"]
            images = [np.array(Image.open(io.BytesIO(one.members[str(one.image)]))).astype(int) for one in (old, new)]
            assert 0 < np.abs(images[0] - images[1]).max() <= 8
            captions.append(new.caption)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3] and [row["images"] for row in rows] == [2, 2, 2]
    each = [json.loads(line) for line in (whole / "metrics" / "faces-001.jsonl").read_text().splitlines()]
    assert [row["image"] for row in each] == [f"sub/1-{i}.JPG" for i in range(2)]
    assert rows[1]["loss_attacked"] == pytest.approx(np.mean([row["loss_attacked"] for row in each]))
    assert len(set(captions)) > 1


def test_as_a_folder_of_the_same_images(attack: Any, archives: str, tmp_path: Path) -> None:
    """Captions included: the same images as files give the same bits."""
    first = find_archives(archives)[0]
    attack("run", images=first, batch_size=2)
    with tarfile.open(first) as archive:
        archive.extractall(tmp_path / "files", filter="data")
    attack("folder", images=tmp_path / "files", batch_size=2)
    for sample in read_samples(tmp_path / "run" / first.name):
        assert sample.members["png"] == (tmp_path / "folder" / f"{sample.key}.png").read_bytes()


def test_interrupted_and_gone_on_with(
    attack: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack_frames, calls = folder_module.attack_frames, []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        # The first batch of the second archive.
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return attack_frames(*args)

    with monkeypatch.context() as patch:
        patch.setattr(archives_module, "attack_frames", interrupted)
        with pytest.raises(Interrupted, match="after 1 of 3 archives"):
            attack("run")
    assert [path.name for path in (tmp_path / "run").glob("*.tar")] == ["faces-000.tar"]
    made = (tmp_path / "run" / "faces-000.tar").stat().st_mtime_ns
    # A row of an archive that is not there: killed between the two.
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "output": "faces-001.tar", "images": 99, "unchanged": 0}\n')
    attack("run", resume=True)
    assert contents(tmp_path / "run") == contents(whole)
    assert made == (tmp_path / "run" / "faces-000.tar").stat().st_mtime_ns


def test_shares_and_processes(attack: Any, archives: str, whole: Path, processes: Any, tmp_path: Path) -> None:
    words = ["attack", "pgd", "--model=demo", f"--images={archives}", "--device=cpu", "--attack-steps=1"]
    words += ["--batch-size=1", f"--out={tmp_path / 'two'}"]
    started = processes(lambda: main(words))
    assert started.wait() == [0, 0], started.output(0)
    assert contents(tmp_path / "two") == contents(whole)
    for number in (2, 1):
        attack("shares", share=f"{number}/2", resume=True)
    assert contents(tmp_path / "shares") == contents(whole)


def test_few_images_are_in_memory(attack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = make_faces(4, seed=3)
    write(tmp_path / "many.tar", [(f"{i:03d}.png", encoded(faces[i % 4].image)) for i in range(12)])
    monkeypatch.setattr(archives_module, "WINDOW", 2)
    alive: list[weakref.ref] = []
    most, opened = 0, archives_module.open_frame

    def watch(*args: Any) -> Any:
        nonlocal most
        frame = opened(*args)
        gc.collect()
        alive.append(weakref.ref(frame))
        most = max(most, sum(reference() is not None for reference in alive))
        return frame

    monkeypatch.setattr(archives_module, "open_frame", watch)
    assert attack("run", images=tmp_path / "many.tar", attack_steps=0, batch_size=2)["images"] == 12
    # Two batches of two images, and what has just been read.
    assert len(alive) == 12 and most <= 8


def test_sizes_that_differ_keep_their_order(attack: Any, tmp_path: Path) -> None:
    faces = [face.image for face in make_faces(3, seed=3)]
    images = [faces[0], np.repeat(faces[1], 2, axis=1), faces[2], np.repeat(faces[0], 2, axis=1)]
    write(tmp_path / "mixed.tar", [(f"{i}.png", encoded(image)) for i, image in enumerate(images)])
    attack("run", images=tmp_path / "mixed.tar", size="original")
    found = [np.array(Image.open(io.BytesIO(s.members["png"]))) for s in read_samples(tmp_path / "run" / "mixed.tar")]
    for before, after in zip(images, found, strict=True):
        assert after.shape == before.shape and np.abs(after.astype(int) - before).max() <= 8


def test_bad_images_and_bad_archives(attack: Any, tmp_path: Path) -> None:
    face = encoded(make_faces(1, seed=3)[0].image)
    write(tmp_path / "one.tar", [("a.png", b"no image"), ("b.png", face), ("b.txt", b"good")])
    with pytest.raises(ValueError, match=r"cannot read image .*one\.tar/a\.png"):
        attack("run", images=tmp_path / "one.tar")
    assert not (tmp_path / "run" / "one.tar").exists() and not list((tmp_path / "run" / "metrics").glob("*"))
    summary = attack("skipped", images=tmp_path / "one.tar", skip_bad=True)
    assert (summary["images"], summary["skipped"]) == (1, 1)
    assert [sample.key for sample in read_samples(tmp_path / "skipped" / "one.tar")] == ["b"]

    (tmp_path / "cut.tar").write_bytes((tmp_path / "one.tar").read_bytes()[:700])
    (tmp_path / "no.tar").write_bytes(b"nothing")
    for name in ("cut", "no"):
        with pytest.raises(ValueError, match=f"{name}.tar is no readable tar archive"):
            attack(name, images=tmp_path / f"{name}.tar", skip_bad=True)
    write(tmp_path / "empty.tar", [("a.txt", b"text")])
    with pytest.raises(ValueError, match=r"empty\.tar holds no image; expected samples of which one member is"):
        attack("empty", images=tmp_path / "empty.tar")
    write(tmp_path / "twice.tar", [("a.png", face), ("a.png", face)])
    with pytest.raises(ValueError, match=r"sample a has two members a\.png"):
        attack("twice", images=tmp_path / "twice.tar")


def test_what_has_not_one_image_goes_over_as_it_is(
    attack: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    face = encoded(make_faces(1, seed=3)[0].image)
    two = [("b.png", face), ("b.jpg", b"also an image")]
    others = [("text.txt", b"alone"), *two, ("c.image.png", face), ("c.txt", b"c")]
    write(tmp_path / "mixed.tar", [("LICENSE", b"free"), ("__meta__.json", b"{}"), *others, ("d.png", face)])
    summary = attack("run", images=tmp_path / "mixed.tar")
    assert (summary["images"], summary["skipped"], summary["without_image"]) == (1, 0, 3)
    unused, mute = (text.partition(": ")[2] for text in caplog.messages)
    assert unused.startswith("3 images are not attacked") and unused.endswith("sample: b.png, b.jpg, c.image.png")
    assert mute.startswith("1 of 1 images have no caption: attacked under the empty prompt")
    samples = [list(read_samples(folder / "mixed.tar", loose=True)) for folder in (tmp_path, tmp_path / "run")]
    assert samples[1][:-1] == samples[0][:-1] and len(samples[0]) == 6
    assert samples[1][-1].key == "d" and samples[1][-1].members["png"] != face
    assert [json.loads(row)["step"] for row in (tmp_path / "run/metrics/mixed.jsonl").read_text().splitlines()] == [1]


@pytest.mark.parametrize("shares", [1, 2])
def test_an_archive_without_a_readable_image_does_not_block_the_rest(attack: Any, tmp_path: Path, shares: int) -> None:
    face = encoded(make_faces(1, seed=3)[0].image)
    for name in "ac":
        write(tmp_path / f"{name}.tar", [("x.png", b"no image"), ("y.txt", b"text")])
    write(tmp_path / "b.tar", [("x.png", face)])

    def run(out: str, images: str) -> None:
        for number in range(shares):
            attack(out, images=tmp_path / images, skip_bad=True, resume=True, share=f"{number + 1}/{shares}")

    run("run", "?.tar")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["images"], summary["skipped"], summary["without_image"]) == (1, 2, 2)
    assert summary["loss_clean"] > 0
    assert [sample.key for sample in read_samples(tmp_path / "run" / "a.tar")] == ["y"]
    for _ in range(2):
        with pytest.raises(ValueError, match="images: none could be read; 2 were skipped"):
            run("none", "[ac].tar")
    assert not (tmp_path / "none" / "summary.json").exists()


def test_what_is_refused_before_anything_is_written(attack: Any, archives: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"images: archive .*gone-01\.tar does not exist"):
        attack("run", images=tmp_path / "gone-{01..03}.tar")
    with pytest.raises(FileNotFoundError, match=r"images: archive .*gone-\*\.tar does not exist"):
        attack("run", images=tmp_path / "gone-*.tar")
    with pytest.raises(ValueError, match=r"expected a range that rises, got \{3\.\.1\}"):
        attack("run", images=tmp_path / "a-{3..1}.tar")
    with pytest.raises(ValueError, match="holds the archives themselves; expected another folder"):
        run_attack("pgd", PgdConfig(model="demo", images=Path(archives), out=Path(archives).parent))
    with pytest.raises(ValueError, match="images: ace trains a surrogate on all images together; expected a folder"):
        run_attack("ace", AceConfig(model="demo", images=Path(archives), out=tmp_path / "run"))
    for folder in ("a", "b"):
        write(tmp_path / folder / "x.tar", [("a.txt", b"")])
    with pytest.raises(ValueError, match=r"expected archives of different names, x\.tar comes twice"):
        attack("run", images=tmp_path / "*" / "x.tar")
    assert not (tmp_path / "run").exists()


def test_patterns(tmp_path: Path) -> None:
    for number in range(8, 12):
        write(tmp_path / f"d-{number:02d}.tar", [("a.txt", b"")])
    names = [path.name for path in find_archives(tmp_path / "d-{08..11}.tar")]
    assert names == [path.name for path in find_archives(tmp_path / "d-*.tar")] and len(names) == 4
    assert [path.name for path in find_archives(tmp_path / "d-{10..11}.tar")] == ["d-10.tar", "d-11.tar"]
