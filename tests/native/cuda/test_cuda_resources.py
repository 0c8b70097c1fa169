"""nvcc compiles every kernel for the oldest and the newest architecture, and none runs out of registers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc", path=f"{os.environ.get('PATH')}:/usr/local/cuda/bin")
ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(NVCC is None, reason="there is no nvcc (PATH, CUDACXX, /usr/local/cuda)")


ARCHITECTURES = ("sm_80", "sm_90a")


def compile_one(source: Path, to: Path) -> str:
    targets = [f"-gencode=arch={name.replace('sm_', 'compute_')},code={name}" for name in ARCHITECTURES]
    command = [NVCC, "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", *targets, "-Xptxas", "-v", "-fatbin", source, "-o", to]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_nothing_spills(kernel_sources, tmp_path):
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = list(pool.map(lambda source: compile_one(source, tmp_path / source.stem), kernel_sources))
    text = "".join(reports)
    kernels = re.findall(r"Compiling entry function '(\w+)' for '(\w+)'", text)
    memory = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
    registers = re.findall(r"Used (\d+) registers", text)
    shared = re.findall(r"(\d+) bytes smem", text)
    assert len(kernels) == len(memory) == len(registers) > 40 and {a for _, a in kernels} == set(ARCHITECTURES)
    for (name, architecture), bytes_of, count in zip(kernels, memory, registers, strict=True):
        assert bytes_of == ("0", "0", "0"), f"{name} for {architecture} spills: stack, stores, loads {bytes_of}"
        # Two blocks of 256 threads on a multiprocessor's 65536 registers.
        assert int(count) <= 128, f"{name} for {architecture} takes {count} registers a thread"
    # The limit without asking for more at run time.
    assert max(map(int, shared)) <= 48 * 1024
