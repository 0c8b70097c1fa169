"""Which instruction set runs, LORDFAST_CPU_ISA, and what the extension says of itself."""

import importlib.metadata
import os
import platform
import subprocess
import sys

import pytest
import torch

import lordfast


def lord(native):
    one = torch.zeros(4)
    weights = (one.data_ptr(),) * 7
    native.cpu_lord_forward(*[one.data_ptr()] * 4, (1, 1, 1, 1, 1, 1), weights, "float32", "relu", 1.0, False, False, 1)


def step(native):
    one = torch.zeros(1, 4)
    native.pgd_step(*[one.data_ptr()] * 4, 1, 4, "float32", "linf", 0.1, 0.1, -1.0, 1.0, 1, 1)


def test_best_first_and_portable_always(native, monkeypatch):
    monkeypatch.delenv("LORDFAST_CPU_ISA", raising=False)
    isas = native.available_isas()
    assert (
        isas == [name for name in ("avx512_bf16", "avx512", "avx2", "portable") if name in isas]
        and isas[-1] == "portable"
    )
    assert native.cpu_isa() == isas[0]
    monkeypatch.setenv("LORDFAST_CPU_ISA", "")
    assert native.cpu_isa() == isas[0]


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="the flags are read from /proc/cpuinfo")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other architectures have the portable kernels only")
def test_detection_agrees_with_the_kernel(native):
    with open("/proc/cpuinfo") as file:
        flags = set(next(line for line in file if line.startswith("flags")).split())
    avx2 = {"avx2", "fma", "f16c"} <= flags
    assert ("avx2" in native.available_isas()) == avx2
    avx512 = avx2 and {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags
    assert ("avx512" in native.available_isas()) == avx512
    assert ("avx512_bf16" in native.available_isas()) == (avx512 and "avx512_bf16" in flags)


@pytest.mark.parametrize("bogus", ["sse9", "AVX2", " avx2", "avx512 ", "avx512_bf"])
def test_a_bogus_name_is_an_error_where_it_is_used(native, monkeypatch, bogus):
    monkeypatch.setenv("LORDFAST_CPU_ISA", bogus)
    expected = f"LORDFAST_CPU_ISA='{bogus}' is no instruction set, expected avx512_bf16, avx512, avx2 or portable"
    for use in (native.cpu_isa, lambda: step(native), lambda: lord(native)):
        with pytest.raises(ValueError) as caught:
            use()
        assert str(caught.value) == expected
    assert native.available_isas()[-1] == "portable"


def test_an_instruction_set_that_this_cpu_lacks(native, monkeypatch):
    missing = [name for name in ("avx512_bf16", "avx512", "avx2") if name not in native.available_isas()]
    if not missing:
        pytest.skip("this CPU has all instruction sets")
    for name in missing:
        monkeypatch.setenv("LORDFAST_CPU_ISA", name)
        for use in (native.cpu_isa, lambda: step(native), lambda: lord(native)):
            with pytest.raises(ValueError, match=f"LORDFAST_CPU_ISA='{name}' is not available on this machine"):
                use()


@pytest.mark.parametrize("value", ["portable", "bogus"])
def test_the_variable_set_before_the_process_starts(value, tmp_path):
    """A bad value must not break the import, only the first use."""
    code = (
        "from lordfast.ops import _native\n"
        "assert _native.available, _native.reason\n"
        "try:\n    print(_native.C.cpu_isa())\n"
        "except ValueError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "LORDFAST_CPU_ISA": value}
    # Not from the repository's root: the source tree there would hide the installed package.
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.strip()
    assert printed == value if value == "portable" else printed.startswith("LORDFAST_CPU_ISA='bogus'")


def test_build_info(native):
    info = native.build_info()
    assert info["version"] == importlib.metadata.version("lordfast") == lordfast.__version__
    assert info["compiler"].split()[0] in {"GNU", "Clang", "AppleClang"}
    assert info["openmp"] is None or info["openmp"].isdigit()
    cuda = info["cuda"]
    if cuda["version"] is None:
        assert cuda["architectures"] == [] and cuda["reason"]
    else:
        assert cuda["architectures"] and cuda["reason"] is None


def test_cuda_status_never_raises(native):
    status = native.cuda_status()
    assert status["device_count"] == len(status["devices"])
    assert bool(status["reason"]) == (status["device_count"] == 0)


@pytest.mark.gpu
def test_cuda_status_agrees_with_torch(native):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    status = native.cuda_status()
    if native.build_info()["cuda"]["version"] is None:
        pytest.skip(status["reason"])
    assert status["device_count"] == torch.cuda.device_count()
    assert status["devices"][0]["capability"] == torch.cuda.get_device_capability(0)
