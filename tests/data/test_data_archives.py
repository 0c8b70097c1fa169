"""Archives that end too early or are damaged: an error, never fewer samples."""

import io
import tarfile
from pathlib import Path

import pytest

from lordfast.data.archives import Sample, find_archives, read_samples, write_archive

SAMPLES = [Sample(f"{i}", {"png": bytes([i]) * 700, "txt": b"caption"}) for i in range(3)]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    with write_archive(tmp_path / "a.tar") as writer:
        for sample in SAMPLES:
            writer.add(sample)
    return tmp_path / "a.tar"


def test_cut_off_anywhere(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    # Per sample a header and two blocks, a header and a block; then zeros, of which one block is an end.
    end = 3 * (5 * 512) + 512
    cut = tmp_path / "cut.tar"
    for length in sorted({*range(0, end + 512, 64), *range(0, end + 1, 512), end - 1, end - 511, end - 513}):
        cut.write_bytes(content[:length])
        if length < end:
            with pytest.raises(ValueError, match=r"cut\.tar is no readable tar archive"):
                list(read_samples(cut))
        else:
            assert list(read_samples(cut)) == SAMPLES


@pytest.mark.parametrize("member", range(6))
def test_a_damaged_header(archive: Path, member: int) -> None:
    with tarfile.open(archive) as opened:
        place = opened.getmembers()[member].offset
    content = bytearray(archive.read_bytes())
    content[place] ^= 1
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tar is no readable tar archive"):
        list(read_samples(archive))


def test_files_of_no_sample_come_when_asked_for(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("__meta__.json", "a.png", "sub/README", "a.txt", "b.", "LICENSE"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    whole = [Sample("a", {"png": b"x", "txt": b"x"}), Sample("b", {"": b"x"})]
    assert list(read_samples(tmp_path / "a.tar")) == whole
    found = list(read_samples(tmp_path / "a.tar", loose=True))
    assert [sample for sample in found if not sample.is_loose] == whole
    loose = [name for sample in found if sample.is_loose for name in sample.members]
    assert loose == ["__meta__.json", "sub/README", "LICENSE"]
    with write_archive(tmp_path / "b.tar") as writer:
        for sample in found:
            writer.add(sample)
    with tarfile.open(tmp_path / "b.tar") as archive:
        assert archive.getnames() == ["__meta__.json", "sub/README", "a.png", "a.txt", "LICENSE", "b."]


def test_a_file_whose_name_reads_as_a_pattern(archive: Path, tmp_path: Path) -> None:
    for name in ("[1].tar", "x?.tar"):
        archive.with_name(name).write_bytes(b"")
        assert find_archives(tmp_path / name) == [tmp_path / name]
    assert [path.name for path in find_archives(tmp_path / "[a1].tar")] == ["a.tar"]


@pytest.mark.parametrize(
    ("members", "caption"),
    [
        ({"TXT": b"\xef\xbb\xbfa\nb", "caption": b"x"}, "a b"),
        ({"txt": b" ", "Caption": b"kohya"}, "kohya"),
        ({"json": b'{"width": 3, "prompt": "p", "caption": "c"}'}, "c"),
        ({"json": b"[1]"}, None),
    ],
)
def test_captions_of_samples(members: dict[str, bytes], caption: str | None) -> None:
    assert Sample("k", {"jpg": b"", **members}).caption == caption


def test_images_of_samples() -> None:
    assert Sample("k", {"HEIC": b"", "txt": b""}).image == "HEIC"
    assert Sample("k", {"avif": b"", "jpg": b"", "txt": b""}).image is None
    assert Sample("k", {"seg.png": b"", "jpg": b""}).image == "jpg"
    for content, reason in (
        (b"\xff", "k.json is not UTF-8"),
        (b"{", "k.json: not valid JSON"),
        (b'{"text": 5}', "int"),
    ):
        with pytest.raises(ValueError, match=reason):
            _ = Sample("k", {"json": content}).caption
