"""`gpu_all.sh --device cpu`: the script that is meant for a machine with a GPU, where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

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


def test_a_benchmark_s_rows_and_what_it_prints_are_in_one_folder(tmp_path):
    done = run("--device", "cpu", "--out", str(tmp_path), "--parts", "pgd", *PATIENT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: rest[0] for name, rest in summary(tmp_path).items()} == dict.fromkeys(("pgd", "total"), "0")
    assert {row["op"] for row in read_rows(tmp_path / "pgd.csv")} == {"pgd_step"}
    assert (tmp_path / "logs" / "pgd.log").stat().st_size


# Says what it was called with, leaves a file of results where one is wanted, and fails once.
_FAKE = """#!/bin/sh
echo "ran $*"
before=
for word; do
    case "$before $word" in "--out "*.csv) echo results > "$word" ;; esac
    before=$word
done
case "$*" in *bench_ops*bf16*) exit 3 ;; esac
"""


def test_a_part_that_fails_does_not_stop_the_others(tmp_path, script):
    fake = tmp_path / "python"
    fake.write_text(_FAKE)
    fake.chmod(0o755)
    out = tmp_path / "out"
    done = run("--device", "cpu", "--out", str(out), python=str(fake))
    assert done.returncode == 1
    status = {name: rest[0] for name, rest in summary(out).items()}
    assert status.pop("ops") == "3" and status.pop("total") == "1"
    scripts = ["pgd", "ops_more", "unet", "stage1", "attack", "plots", "plots_steps", "table"]
    assert set(status) >= {"gpu_tests", *scripts}
    assert set(status.values()) == {"0"}

    # The flags are the scripts' own.
    configs = {}
    for name in ("ops", *scripts):
        ran, program, *flags = (out / "logs" / f"{name}.log").read_text().split()
        assert ran == "ran" and Path(program).parent == SCRIPT.parent
        configs[name] = tyro.cli(script(Path(program).stem).Config, args=flags)
    results = {name: out / f"{name}.csv" for name in ("ops", "ops_more", "pgd", "unet")}
    assert {name: configs[name].out for name in results} == results
    assert all(configs[name].quick and configs[name].device == "cpu" for name in (*results, "stage1", "attack"))
    assert configs["plots"].results == configs["table"].results == tuple(results.values())
    assert configs["plots_steps"].results == (out / "stage1.csv",)
    assert (configs["plots"].out, configs["table"].out) == (out, out / "dispatch.json")


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
