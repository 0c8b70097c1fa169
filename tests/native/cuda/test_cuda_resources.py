"""nvcc compiles every kernel for the oldest and the newest architecture, and none needs more registers than there are."""

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


def compile_one(source: Path, architecture: str, folder: Path) -> str:
    virtual = architecture.replace("sm_", "compute_")
    command = [NVCC, "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", f"-gencode=arch={virtual},code={architecture}"]
    command += ["-Xptxas", "-v", "-cubin", str(source), "-o", str(folder / f"{source.stem}.{architecture}.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_nothing_spills(kernel_sources, tmp_path, architecture):
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = list(pool.map(lambda source: compile_one(source, architecture, tmp_path), kernel_sources))
    text = "".join(reports)
    names = re.findall(rf"Compiling entry function '(\w+)' for '{architecture}'", text)
    memory = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
    registers = re.findall(r"Used (\d+) registers", text)
    shared = re.findall(r"(\d+) bytes smem", text)
    assert len(names) == len(memory) == len(registers) > 20
    for name, bytes_of, count in zip(names, memory, registers, strict=True):
        assert bytes_of == ("0", "0", "0"), f"{name} for {architecture} spills: stack, stores, loads {bytes_of}"
        # Two blocks of 256 threads on a multiprocessor's 65536 registers.
        assert int(count) <= 128, f"{name} for {architecture} takes {count} registers a thread"
    # The limit without asking for more at run time.
    assert max(map(int, shared)) <= 48 * 1024
