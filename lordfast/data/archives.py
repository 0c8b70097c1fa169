"""webdataset archives: .tar files of samples, a sample being consecutive members whose names differ in the extension.

Read and written as a stream, with Python's tarfile alone: an archive never has to fit into memory.
"""

from __future__ import annotations

import glob
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lordfast.data.captions import CAPTION_EXTENSIONS, caption_of
from lordfast.data.images import names_image
from lordfast.files import replacing

if TYPE_CHECKING:
    from typing_extensions import Self

# webdataset's own rule: the key ends at the first full stop of the last path component.
_NAME = re.compile(r"((?:.*/)?[^./][^.]*)\.([^/]*)")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Sample:
    """What belongs together: extension -> content, in the archive's order, under a key.

    A file that belongs to no sample comes under an empty key, its name in the place of the extension.
    """

    key: str
    members: Mapping[str, bytes]

    @property
    def is_loose(self) -> bool:
        """Whether it is a file that belongs to no sample."""
        return not self.key

    @property
    def names(self) -> list[str]:
        """Its members' names in the archive."""
        return [extension if self.is_loose else f"{self.key}.{extension}" for extension in self.members]

    @property
    def image(self) -> str | None:
        """The extension of its image, also of one of a format that is not read; None if it has none, or several."""
        found = [each for each in self.members if "." not in each and names_image(f"x.{each}")]
        return found[0] if len(found) == 1 and not self.is_loose else None

    @property
    def caption(self) -> str | None:
        """Its .txt, else its .caption, else `caption_of` the object in its .json; upper or lower case.

        Raises:
            ValueError: one of them is not UTF-8, the last is no JSON.
        """
        members = {f".{extension.lower()}": extension for extension in reversed(list(self.members))}
        for kind in (*CAPTION_EXTENSIONS, ".json"):
            if kind not in members:
                continue
            where = f"{self.key}.{members[kind]}"
            try:
                text = self.members[members[kind]].decode("utf-8-sig")
                row = json.loads(text) if kind == ".json" else {"text": text}
            except UnicodeDecodeError as error:
                raise ValueError(f"{where} is not UTF-8 text: {error}") from None
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not valid JSON: {error}") from None
            if isinstance(row, dict) and (caption := caption_of(row, where)):
                return caption
        return None

    def with_png(self, content: bytes) -> Sample:
        """This sample with another image, a PNG, in the place of its own."""
        members = {"png" if extension == self.image else extension: old for extension, old in self.members.items()}
        return Sample(self.key, {**members, "png": content})


def names_archives(path: str | Path) -> bool:
    """Whether `path` is meant as archives: it ends in .tar."""
    return str(path).endswith(".tar")


def find_archives(pattern: str | Path) -> list[Path]:
    """The archives that `pattern` names, in order: a file, ``data-{000..099}.tar``, or ``data-*.tar``.

    Raises:
        FileNotFoundError: one of a range is missing, or nothing matches.
        ValueError: two have one name, which their results would share; a range runs backwards.
    """
    found: list[Path] = []
    for name in _expanded(str(pattern)):
        # A file may be called so that it reads as a pattern.
        if glob.has_magic(name) and not Path(name).is_file():
            matches = sorted(path for path in glob.glob(name) if Path(path).is_file())
        else:
            matches = [name] if Path(name).is_file() else []
        if not matches:
            raise FileNotFoundError(f"archive {name} does not exist")
        found += map(Path, matches)
    names = [path.name for path in found]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ValueError(f"{pattern}: expected archives of different names, {twice} comes twice")
    return found


def _expanded(pattern: str) -> list[str]:
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    if int(first) > int(last):
        raise ValueError(f"{pattern}: expected a range that rises, got {match.group()}")
    width = len(first) if first.startswith("0") else 0
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for i in range(int(first), int(last) + 1) for name in _expanded(f"{head}{i:0{width}d}{tail}")]


class _Strict(tarfile.TarInfo):
    """tarfile takes a header that is cut short or wrong for the end, unless it is the first one."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from None


def read_samples(path: Path, loose: bool = False) -> Iterator[Sample]:
    """The samples of an archive, one after the other. Folders and links, which webdataset passes over, are not read.

    Args:
        loose: also files that belong to no sample, each before the sample that it interrupts or follows: those without
            an extension, and those of webdataset.

    Raises:
        ValueError: it is no readable archive, or ends too early, or a sample has two members of one name.
    """
    key = ""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|*", tarinfo=_Strict) as archive:
            for info in archive:
                if not info.isfile():
                    continue
                stream = archive.extractfile(info)
                assert stream is not None  # of a regular file
                match = _NAME.fullmatch(info.name)
                if match is None or match.group(1).rpartition("/")[2].startswith("__"):
                    if loose:
                        yield Sample("", {info.name: stream.read()})
                    continue
                if match.group(1) != key and members:
                    yield Sample(key, members)
                    members = {}
                key, extension = match.groups()
                if extension in members:
                    raise ValueError(f"{path}: sample {key} has two members {info.name}")
                members[extension] = stream.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no readable tar archive: {error}") from error
    if members:
        yield Sample(key, members)


class ArchiveWriter:
    """Adds samples to an archive; equal samples make equal files."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive

    def add(self, sample: Sample) -> None:
        for name, content in zip(sample.names, sample.members.values(), strict=True):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            self._archive.addfile(info, io.BytesIO(content))


@contextmanager
def write_archive(path: Path) -> Iterator[ArchiveWriter]:
    """An archive to add samples to; it is there as `path` when the block ends without an exception, not before."""
    with replacing(path) as temporary, tarfile.open(temporary, "x") as archive:
        yield ArchiveWriter(archive)
