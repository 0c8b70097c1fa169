"""The CUDA kernels on a CPU: their sources and bindings, compiled over host_shim, behind the backend's Python code."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import lordfast.ops as ops
from lordfast.ops import _native, dispatch
from lordfast.ops.backends import Backend
from lordfast.ops.backends.native import cuda_build, cuda_lord, cuda_pgd

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
KERNELS = sorted((ROOT / "csrc/core/cuda").glob("*.cu"))
CORE = [*KERNELS, ROOT / "csrc/core/cuda/lord.cpp"]
SHIM = HERE / "host_shim"


class Compiler:
    """g++ over the shim, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
        assert self.program, "there is no C++ compiler, without which lordfast could not have been installed"

    def run(self, *arguments: object) -> None:
        done = subprocess.run([self.program, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def objects(self, sources: list[Path], *flags: str) -> list[Path]:
        common = ["-std=c++17", f"-I{SHIM}", f"-I{ROOT / 'csrc'}", "-fPIC", "-ffp-contract=off", "-U_FORTIFY_SOURCE"]
        made = [self.folder / f"{source.stem}.o" for source in sources]

        def compile_one(source: Path, to: Path) -> None:
            self.run(*common, *flags, "-x", "c++", "-c", source, "-o", to)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, sources, made))
        return made


def _build_host_module(folder: Path) -> None:
    import pybind11

    compiler = Compiler(folder)
    kernels = compiler.objects([*CORE, SHIM / "fibres.cpp", SHIM / "planted.cpp"], "-O1")
    library = folder / "libkernels.so"
    compiler.run("-shared", *kernels, "-o", library)
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    bindings = [ROOT / "csrc/bindings/cuda_lord.cpp", ROOT / "csrc/bindings/cuda_pgd_step.cpp", SHIM / "module.cpp"]
    made = compiler.objects(bindings, "-O0", "-fvisibility=hidden", *includes)
    compiler.run("-shared", *made, library, f"-Wl,-rpath,{folder}", "-o", folder / "cuda_on_host.so")


@pytest.fixture(scope="session")
def host_module(made_once: Callable[..., Path]) -> Any:
    """The extension's CUDA functions over kernels that run on the CPU, and `set_order`, `take_launched`, `planted`."""
    module = made_once("cuda_on_host", _build_host_module) / "cuda_on_host.so"
    spec = importlib.util.spec_from_file_location("cuda_on_host", module)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


class _Both:
    def __init__(self, host: Any, real: Any) -> None:
        self.host, self.real = host, real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.host, name) if hasattr(self.host, name) else getattr(self.real, name)


@pytest.fixture
def on_host(host_module: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A backend "cuda_on_host" for CPU tensors; all memory that torch hands out meanwhile is full of NaNs."""
    monkeypatch.setattr(_native, "C", _Both(host_module, _native.C))
    monkeypatch.setattr(cuda_build, "why_not_on", lambda device: None)
    monkeypatch.setattr(cuda_build, "queue_of", lambda device: (0, 0))
    kernels = {"lord_forward": cuda_lord.FORWARD, "lord_backward": cuda_lord.BACKWARD, "pgd_step": cuda_pgd.KERNEL}
    monkeypatch.setitem(dispatch.BACKENDS, "cuda_on_host", Backend("cuda_on_host", -1, lambda: None, kernels))
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(4).isnan().all() and torch.empty(0).new_empty(4, dtype=torch.uint8).eq(255).all()
    host_module.set_order(0)
    host_module.take_launched()
    with ops.use_backend("cuda_on_host"):
        yield host_module
    host_module.set_order(0)
    torch.use_deterministic_algorithms(before)


def _build_sanitized(folder: Path) -> None:
    compiler = Compiler(folder)
    flags = ("-g1", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    made = compiler.objects([*CORE, SHIM / "fibres.cpp", SHIM / "check.cpp"], *flags)
    compiler.run(*flags, *made, "-o", folder / "check")


@pytest.fixture(scope="session")
def sanitized(made_once: Callable[..., Path]) -> Callable[[str], subprocess.CompletedProcess]:
    """`sanitized(lines)`: host_shim/check.cpp on them, with the address and undefined-behaviour sanitizers."""
    program = made_once("cuda_sanitized", _build_sanitized) / "check"

    def run(lines: str) -> subprocess.CompletedProcess:
        return subprocess.run([program], input=lines, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def kernel_sources() -> list[Path]:
    return KERNELS
