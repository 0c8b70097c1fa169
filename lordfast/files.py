"""Files that are either complete or absent, even when a run is interrupted in the middle of a write; the cache folder.

Stands below everything, so that all may use it.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from safetensors import SafetensorError

logger = logging.getLogger(__name__)


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
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Whatever keeps a library from writing to `path` becomes an OSError that names it.

    safetensors, and torch.save in its way, report a full disk as errors of their own; the operating system's does not
    say which file it was about.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
            raise
        raise OSError(f"{path} could not be written: {str(error).splitlines()[0]}") from error
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


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
    """``$LORDFAST_CACHE``, else ``lordfast`` under ``$XDG_CACHE_HOME`` or ``~/.cache``; an empty variable is as none.

    A user without a home folder gets one of this process alone, which goes when it ends, and a warning.
    """
    if own := os.environ.get("LORDFAST_CACHE"):
        return Path(expand_user(own))
    # The standard has relative ones ignored.
    shared = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(shared if os.path.isabs(shared) else os.path.expanduser("~/.cache")) / "lordfast"
    return folder if folder.is_absolute() else _passing_cache_dir()


@cache
def _passing_cache_dir() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="lordfast-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    logger.warning(
        "no home folder for a cache: %s is used, and deleted at the end; LORDFAST_CACHE names a folder that stays",
        folder.name,
    )
    return Path(folder.name)


def expand_user(text: str) -> str:
    """`text` with the home folder in place of a leading ``~`` or ``~user``, also behind ``NAME=``.

    Raises:
        ValueError: there is no such home folder.
    """
    name, equals, path = text.rpartition("=") if re.match(r"[^/=]*=~", text) else ("", "", text)
    if not re.match(r"~[^/\s]*(/|$)", path):
        return text
    expanded = os.path.expanduser(path)
    if expanded == path and not os.path.lexists(path):
        raise ValueError(f"{text}: there is no home folder in place of {path.partition('/')[0]}; expected a path")
    return f"{name}{equals}{expanded}"
