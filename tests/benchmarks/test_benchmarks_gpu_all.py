"""`gpu_all.sh --device cpu`: the script that is meant for a machine with a GPU, where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lordfast.profiling.results import read_rows

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_all.sh"
# Budgets that no machine exhausts.
PATIENT = ("--seconds", "53000")


def run(*flags: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": python, "OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", str(SCRIPT), *flags], capture_output=True, text=True, env=environment, check=False)


def summary(out: Path) -> dict[str, list[str]]:
    lines = [line.split() for line in (out / "summary.txt").read_text().splitlines()]
    assert lines[0] == ["part", "status", "seconds"]
    return {name: rest for name, *rest in lines[1:]}


def test_benchmarks_plots_and_table_in_one_folder(tmp_path):
    done = run("--device", "cpu", "--out", str(tmp_path), "--parts", "pgd plots table", *PATIENT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: rest[0] for name, rest in summary(tmp_path).items()} == dict.fromkeys(
        ("pgd", "plots", "table", "total"), "0"
    )
    assert {row["op"] for row in read_rows(tmp_path / "pgd.csv")} == {"pgd_step"}
    assert list(tmp_path.glob("*.png")) and (tmp_path / "dispatch.json").stat().st_size
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"pgd.log", "plots.log", "table.log"}


def test_a_part_that_fails_does_not_stop_the_others(tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "ran $*"\ncase "$*" in *bench_ops*bf16*) exit 3 ;; esac\n')
    fake.chmod(0o755)
    out = tmp_path / "out"
    done = run("--device", "cpu", "--out", str(out), python=str(fake))
    assert done.returncode == 1
    status = {name: rest[0] for name, rest in summary(out).items()}
    assert status.pop("ops") == "3" and status.pop("total") == "1"
    assert set(status) >= {"gpu_tests", "pgd", "ops_more", "unet", "stage1", "attack", "plots", "table"}
    assert set(status.values()) == {"0"}
    assert "bench_ops.py --device cpu --out" in (out / "logs" / "ops.log").read_text()


def test_a_gpu_machine_builds_for_its_architecture(tmp_path):
    fake = tmp_path / "python"
    answers = '*get_device_name*) echo NVIDIA-H200 ;; *capability*) echo 90a ;; *) echo "ran $*" ;;'
    fake.write_text(f'#!/bin/sh\ncase "$*" in {answers} esac\n')
    fake.chmod(0o755)
    done = run("--out", str(tmp_path / "out"), "--parts", "build gpu_tests", python=str(fake))
    assert done.returncode == 0, done.stdout + done.stderr
    built = (tmp_path / "out" / "logs" / "build.log").read_text()
    assert "-m pip install . --no-build-isolation --no-deps" in built
    assert "cmake.define.CMAKE_CUDA_ARCHITECTURES=90a-real" in built
    assert "-m gpu" in (tmp_path / "out" / "logs" / "gpu_tests.log").read_text()


def test_what_does_not_fit_is_skipped_and_said(tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    done = run("--device", "cpu", "--out", str(tmp_path / "out"), "--seconds", "10", python=str(fake))
    status = {name: rest[0] for name, rest in summary(tmp_path / "out").items()}
    assert done.returncode == 1 and status.pop("total") == "1"
    assert len(status) >= 7 and set(status.values()) == {"skipped"}


@pytest.mark.parametrize("flags", [["--device", "tpu"], ["--speed"], ["--out"]])
def test_flags_that_are_none(flags):
    done = run(*flags)
    assert done.returncode == 2 and "usage: benchmarks/gpu_all.sh" in done.stderr
