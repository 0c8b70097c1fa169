"""A process that is killed takes the others with it, and nothing is lost: the end is that of the run nobody killed."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lordfast.cli.main import main
from lordfast.training import loop as loop_module
from lordfast.training import team as team_module

LORA, LORD = "pytorch_lora_weights.safetensors", "lord.safetensors"
STAGE1 = ["stage1", "--steps=5", "--attack-steps=1", "--attack-batch-size=1"]
STAGE2 = ["stage2", "--steps=5", "--instance-prompt=a photo of sks person"]


@pytest.fixture
def command(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[], int]]:
    """``command(words, out, *flags)``: to be called."""
    monkeypatch.setattr(team_module, "PATIENCE", 1.0)
    data = {"stage1": "data", "stage2": "instance-data"}

    def make(words: list[str], out: str, *flags: str) -> Callable[[], int]:
        common = ["--model=demo", f"--{data[words[0]]}={faces}", f"--out={tmp_path / out}", "--device=cpu", "--lr=1e-3"]
        common += ["--batch-size=1", "--checkpoint-every=2", "--no-tensorboard"]
        return lambda: main([*words, *common, *flags])

    return make


def killed_after(checkpoint: int, work: Callable[[], int]) -> Callable[[], int]:
    """`work`, in which the second process is killed in the step after a checkpoint."""

    def run() -> int:
        seed = loop_module.derive_seed

        def deadly(*parts: object) -> int:
            if os.environ["RANK"] == "1" and parts[1:3] == ("step", checkpoint + 1):
                os.kill(os.getpid(), signal.SIGKILL)
            return seed(*parts)

        loop_module.derive_seed = deadly
        return work()

    return run


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def kill(processes: Any, work: Callable[[], int], run: Path) -> None:
    """Run `work` to its violent end, after the first checkpoint."""
    codes = (started := processes(killed_after(2, work))).wait()
    assert codes[1] == -signal.SIGKILL and codes[0] != 0, started.output(0)
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == ["step-00000002"]
    assert len(rows(run)) < 5


def finish(processes: Any, work: Callable[[], int]) -> None:
    started = processes(work)
    assert started.wait() == [0, 0], started.output(0)


def test_stage2(command: Any, processes: Any, tmp_path: Path) -> None:
    straight, killed, sharded = (tmp_path / name for name in ("straight", "killed", "sharded"))
    finish(processes, command(STAGE2, "straight"))
    kill(processes, command(STAGE2, "killed"), killed)
    finish(processes, command(STAGE2, "killed", "--resume"))
    assert (killed / LORA).read_bytes() == (straight / LORA).read_bytes() and rows(killed) == rows(straight)

    # What was begun with FSDP goes on without: checkpoints are the same. Only weights that lie elsewhere in memory
    # round differently.
    kill(processes, command(STAGE2, "sharded", "--fsdp"), sharded)
    finish(processes, command(STAGE2, "sharded", "--resume"))
    for ours, theirs in zip(rows(sharded), rows(straight), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    first, second = load_file(straight / LORA), load_file(sharded / LORA)
    assert first.keys() == second.keys()
    for name, value in first.items():
        # Adam divides by the gradient's size: a tiny gradient's rounding may decide the sign of a whole step.
        assert (value - second[name]).abs().mean() < 0.01 * value.abs().mean().clamp_min(1e-6), name


def test_stage1(command: Any, processes: Any, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    kill(processes, command(STAGE1, "killed"), killed)
    made = {path: path.stat().st_mtime_ns for path in (killed / "perturbed").glob("*.png")}
    assert len(made) == 4
    next(iter(made)).unlink()
    finish(processes, command(STAGE1, "killed", "--resume"))
    assert sum(path.stat().st_mtime_ns == before for path, before in made.items()) == 3
    finish(processes, command(STAGE1, "straight"))
    assert (killed / LORD).read_bytes() == (straight / LORD).read_bytes() and rows(killed) == rows(straight)
