"""Who works on what: locks of folders that several processes share, and that outlive no process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

LOCK = "lock"
_OWNER = "owner.json"
_ASIDE = f".{LOCK}-"


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        pid, host: which one.
        born: when it started, as the system counts it ("" where that can't be told): process numbers come round again.
    """

    pid: int
    host: str
    born: str

    @classmethod
    def here(cls) -> Owner:
        return cls(os.getpid(), socket.gethostname(), _born(os.getpid()))

    def is_dead(self) -> bool:
        """Whether it is known to be gone; of a process on another host nothing is known."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return self.born != "" and _born(self.pid) != self.born

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _born(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # The name, in brackets, may hold blanks and brackets of its own; the start time is the 20th field behind it.
    return stat.rpartition(")")[2].split()[19]


def owner_of(folder: Path) -> Owner | None:
    """Who holds the lock of `folder`; None where nobody does."""
    try:
        return Owner(**json.loads((folder / LOCK / _OWNER).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None


def holders(folder: Path) -> dict[str, Owner]:
    """Folders at any depth below `folder` that living processes, or those of other hosts, hold; by relative path."""
    places = [lock.parent for lock in folder.rglob(LOCK) if lock.is_dir()]
    owners = {str(place.relative_to(folder)): owner_of(place) for place in sorted(places)}
    return {name: owner for name, owner in owners.items() if owner is not None and not owner.is_dead()}


def is_lock(path: Path) -> bool:
    """Whether `path`, in a folder that is claimed, belongs to the claiming."""
    return path.name == LOCK or path.name.startswith(_ASIDE)


@contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Hold the lock of `folder` in the block; yields False where another process has it.

    The lock is the folder ``lock`` with its owner in it. It appears and goes whole, by a rename, which fails where one
    stands already. That of a process of this host that is gone is taken over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken = _take(folder)
    try:
        yield taken
    finally:
        if taken:
            _remove(folder)


def _take(folder: Path) -> bool:
    if _place(folder):
        return True
    owner = owner_of(folder)
    if owner is not None and not owner.is_dead():
        return False
    # Two that find the same dead owner must not remove each other's fresh lock: one at a time looks again and removes.
    # The system itself lets go of this guard when its holder dies, and all who need it are on one host.
    with open(folder / f"{_ASIDE}takeover", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        owner = owner_of(folder)
        if owner is not None and owner.is_dead():
            _remove(folder)
    return _place(folder)


def _place(folder: Path) -> bool:
    made = _aside(folder)
    made.mkdir()
    (made / _OWNER).write_text(json.dumps(asdict(Owner.here())), encoding="utf-8")
    try:
        made.rename(folder / LOCK)
    except OSError as error:
        # A folder that is not empty can't be replaced: somebody else was first. Any other reason is an error.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return True


def _remove(folder: Path) -> None:
    gone = _aside(folder)
    (folder / LOCK).rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder / f"{_ASIDE}{uuid.uuid4().hex}"
