"""The recipes of examples/: the Slurm script as its tasks run it, the Ray script against a stand-in for Ray."""

import json
import os
import runpy
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lordfast.cli.main import main

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def recorder(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with a ``lordfast`` that writes its arguments down, a line a call, and that file."""
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    (folder / "lordfast").write_text(f'#!/bin/sh\nprintf "%s\\037" "$@" >> {log}\necho >> {log}\n')
    (folder / "lordfast").chmod(0o755)
    return folder, log


def test_slurm(recorder: tuple[Path, Path], faces: Path, tmp_path: Path) -> None:
    folder, log = recorder
    words = [str(faces), str(tmp_path / "out"), "--model", "demo", "--attack-steps", "1", "--device", "cpu"]
    for task in (5, 4):
        # An array that does not begin with 1.
        array = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "4"}
        environment = os.environ | array | {"PATH": f"{folder}:{os.environ['PATH']}"}
        subprocess.run(["bash", EXAMPLES / "slurm_attack.sbatch", *words], env=environment, check=True)
    calls = [line.split("\037")[:-1] for line in log.read_text().splitlines()]
    assert [call[call.index("--share") + 1] for call in calls] == ["2/2", "1/2"]
    # The commands are real ones, and together they do all of it.
    for call in calls:
        assert main(call) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["images"] == 4


def test_slurm_does_one_share_again(recorder: tuple[Path, Path]) -> None:
    folder, log = recorder
    alone = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_MIN": "5"}
    environment = os.environ | alone | {"PATH": f"{folder}:{os.environ['PATH']}"}
    words = ["bash", EXAMPLES / "slurm_attack.sbatch", "in", "out"]
    refused = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert refused.returncode == 2 and "set SHARES to the number of shares" in refused.stderr and not log.exists()
    subprocess.run(words, env=environment | {"SHARES": "16"}, check=True)
    assert "--share\0375/16\037" in log.read_text()


class _Ray(types.ModuleType):
    """As much of Ray as the script uses: tasks run here, one after the other, again when they raise."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.data = types.SimpleNamespace(range=self._range)
        self.options: dict[str, Any] = {}

    def init(self, **options: Any) -> None:
        pass

    def _range(self, count: int, override_num_blocks: int) -> "_Ray":
        assert override_num_blocks == count, "a task a share"
        self._count = count
        return self

    def map(self, work: Callable[[dict[str, Any]], dict[str, Any]], **options: Any) -> "_Ray":
        self._work, self.options = work, options
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        for number in reversed(range(self._count)):
            for left in reversed(range(self.options["max_retries"] + 1)):
                try:
                    yield self._work({"id": number})
                    break
                except RuntimeError:
                    if not left or not self.options["retry_exceptions"]:
                        raise


def test_ray(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With Ray itself it was tried by hand: an installation of hundreds of megabytes."""
    ray, failed = _Ray(), []

    def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert words[:3] == [sys.executable, "-m", "lordfast.cli.main"]
        if not failed:
            failed.append(words)
            return subprocess.CompletedProcess(words, 2, "", "error: the node is gone")
        code = main(words[3:])
        return subprocess.CompletedProcess(words, code, capsys.readouterr().out, "")

    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(subprocess, "run", run)
    script, out = EXAMPLES / "ray_attack.py", tmp_path / "out"
    words = ["--shares=2", "--gpus=0.5", f"--images={faces}", f"--out={out}", "--model=demo", "--device=cpu"]
    monkeypatch.setattr(sys, "argv", [str(script), *words, "--attack-steps=1", "--batch-size=2"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 0 and ray.options["num_gpus"] == 0.5
    assert len(failed) == 1
    summary = json.loads((out / "summary.json").read_text())
    assert summary["images"] == 4 and len(list((out / "shares").iterdir())) == 2
