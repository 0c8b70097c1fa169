"""Files that are either complete or absent, even when a run is interrupted in the middle of a write; the cache folder.

Stands below everything, so that all may use it.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A hidden temporary file in the folder of ``path`` to write to; without an exception it becomes ``path``.

    Parent folders are created; an existing file is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkstemp: it creates files with mode 0600, and results should follow the user's umask.
    # A short name of its own, so that a `path` near the file system's limit still works.
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | Path, content: bytes | str) -> None:
    r"""Write ``content`` to ``path`` through `replacing`.

    Text becomes UTF-8. A file name that is no text, which Python keeps in lone surrogates, is escaped as ``\udcfc``:
    so do JSON and YAML, which read it back as the same name.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    with replacing(path) as temporary, open(temporary, "xb") as stream:
        stream.write(content)


def is_temporary(path: Path) -> bool:
    """Whether `path` is called as `replacing` calls what is not complete yet."""
    return re.fullmatch(r"\.[0-9a-f]{32}\.tmp", path.name) is not None


def sweep(folder: Path) -> None:
    """Delete what killed processes left of `replacing`, at any depth; no living one may write there."""
    for inside, _, names in os.walk(folder):
        for name in names:
            if is_temporary(path := Path(inside, name)):
                path.unlink(missing_ok=True)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in ``folder``, at any depth."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def default_cache_dir() -> Path:
    """``$LORDFAST_CACHE``, else ``lordfast`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if "LORDFAST_CACHE" in os.environ:
        return Path(os.environ["LORDFAST_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lordfast"
