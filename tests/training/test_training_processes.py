"""Several processes: torchrun against one process, files written once, Ctrl-C and --resume, errors on every rank."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lordfast.cli.main import main
from lordfast.defense.stage1 import Stage1Config, run_stage1
from lordfast.training.stage2 import run_stage2

LORA = "pytorch_lora_weights.safetensors"
# The signal test needs some steps left when it notices the first.
STEPS = 16


@pytest.fixture
def torchrun(tmp_path: Path) -> Callable[[list[str]], subprocess.Popen[str]]:
    """Start ``lordfast ARGS`` in two processes, in a process group of its own as a terminal would."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LORDFAST_CACHE": str(tmp_path / "shared-cache")}

    def start(args: list[str]) -> subprocess.Popen[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        return subprocess.Popen(
            [*launcher, "-m", "lordfast.cli.main", *args],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def _flags(out: Path, faces: Path) -> list[str]:
    settings = {"out": out, "model": "demo", "instance-data": faces, "instance-prompt": "a photo of sks person"}
    settings |= {"steps": STEPS, "batch-size": 1, "accumulate": 2, "lr": 1e-3, "device": "cpu", "checkpoint-every": 100}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return ["stage2", *words, "--no-tensorboard", "--train-text-encoder"]


def _close(a: Path, b: Path) -> None:
    first, second = load_file(a), load_file(b)
    assert first.keys() == second.keys()
    for name, value in first.items():
        # Adam divides by the gradient's size: a tiny gradient's rounding may decide the sign of a whole step.
        difference = (value - second[name]).abs()
        assert difference.mean() < 0.01 * value.abs().mean().clamp_min(1e-6), name


def test_two_processes_equal_one_with_twice_the_batch(
    torchrun: Any, processes: Any, stage2: Any, faces: Path, tmp_path: Path
) -> None:
    straight = processes(lambda: main(_flags(tmp_path / "straight", faces)))
    assert straight.wait() == [0, 0], straight.output(0)
    assert (straight.output(0) + straight.output(1)).count("LoRA after") == 1
    rows = (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == STEPS
    assert not list((tmp_path / "straight").rglob(".*"))

    config = stage2("one", steps=STEPS, batch_size=2, accumulate=2, train_text_encoder=True)
    run_stage2(config)
    _close(tmp_path / "straight" / LORA, config.out / LORA)

    broken = torchrun(_flags(tmp_path / "broken", faces))
    metrics = tmp_path / "broken" / "metrics.jsonl"
    while broken.poll() is None and not (metrics.exists() and metrics.read_text().count("\n")):
        time.sleep(0.05)
    os.killpg(broken.pid, signal.SIGINT)
    _, error = broken.communicate()
    assert not (tmp_path / "broken" / LORA).exists(), "it finished before the signal came"
    assert "Go on with:" in error and "KeyboardInterrupt" not in error.split("Go on with:")[0]
    assert len(list((tmp_path / "broken" / "checkpoints").iterdir())) == 1
    assert error.count("Go on with:") == 1
    printed = shlex.split(error.split("Go on with:")[1].strip().splitlines()[0])
    assert printed[:5] == ["torchrun", "--nproc_per_node", "2", "-m", "lordfast.cli.main"]
    resumed = processes(lambda: main(printed[5:]))
    assert resumed.wait() == [0, 0], resumed.output(0)
    assert (resumed.output(0) + resumed.output(1)).count("LoRA after") == 1
    for name in (LORA, "metrics.jsonl"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_stage1_in_two_processes_equals_one(processes: Any, faces: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"model": "demo", "data": faces, "device": "cpu", "steps": 3, "lr": 1e-3}
    common |= {"attack_steps": 2, "attack_batch_size": 1, "tensorboard": False}
    run_stage1(Stage1Config(out=tmp_path / "one", batch_size=2, **common))
    words = [f"--{name.replace('_', '-')}={value}" for name, value in common.items() if name != "tensorboard"]
    command = ["stage1", f"--out={tmp_path / 'two'}", "--batch-size=1", "--no-tensorboard", *words]
    two = processes(lambda: main(command))
    assert two.wait() == [0, 0], two.output(0)
    assert (two.output(0) + two.output(1)).count("LoRD after") == 1
    _close(tmp_path / "one" / "lord.safetensors", tmp_path / "two" / "lord.safetensors")
    for path in sorted((tmp_path / "one" / "perturbed").glob("*.png")):
        assert path.read_bytes() == (tmp_path / "two" / "perturbed" / path.name).read_bytes()

    again = processes(lambda: main(command))
    assert set(again.wait()) == {2}
    assert "holds a run already; --resume goes on with it" in again.output(0)


def test_one_process_needs_no_process_group() -> None:
    from lordfast.training.processes import make_accelerator, on_main

    accelerator = make_accelerator("bf16", torch.device("cpu"))
    assert accelerator.device == torch.device("cpu") and accelerator.num_processes == 1
    assert on_main(accelerator, lambda: 3) == 3
    assert make_accelerator("fp32", torch.device("cpu")).mixed_precision == "no"
