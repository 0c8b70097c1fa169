"""Several processes on one machine, for tests of what they do together."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch


class Processes:
    """Copies of this process that work as torchrun's would: same variables, and the rest are told when one dies.

    Forked, because a process started from nothing needs ten seconds to import everything.
    """

    def __init__(self, work: Callable[[], int | None], folder: Path, count: int = 2) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._folder = folder
        folder.mkdir()
        self.pids: list[int] = []
        self.codes: dict[int, int] = {}
        for rank in range(count):
            pid = os.fork()
            if pid == 0:
                self._child(work, rank, count, port)
            self.pids.append(pid)

    def _child(self, work: Callable[[], int | None], rank: int, count: int, port: int) -> None:
        code = 1
        try:
            log = os.open(self._folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(log, stream)
            # pytest has put its own in their place.
            sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
            os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_PORT": str(port)}
            # A team of threads does not survive a fork.
            torch.set_num_threads(1)
            code = work() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def wait(self) -> list[int]:
        """The exit codes, or minus the signals, by rank; when one fails, the others get a SIGTERM."""
        while len(self.codes) < len(self.pids):
            for pid in [pid for pid in self.pids if pid not in self.codes]:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
                    if self.codes[pid]:
                        self.kill(signal.SIGTERM)
            time.sleep(0.02)
        return [self.codes[pid] for pid in self.pids]

    def kill(self, number: int) -> None:
        """Send it to those that still run."""
        for pid in self.pids:
            if pid not in self.codes:
                os.kill(pid, number)

    def output(self, rank: int) -> str:
        """What it has printed, on either stream."""
        return (self._folder / f"{rank}.log").read_text()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Callable[..., Processes]]:
    """``processes(work, count=2)`` starts `Processes`; none outlives its test."""
    started: list[Processes] = []

    def start(work: Callable[[], int | None], count: int = 2) -> Processes:
        started.append(Processes(work, tmp_path / f"processes-{len(started)}", count))
        return started[-1]

    yield start
    for one in started:
        one.kill(signal.SIGKILL)
        one.wait()
