"""The extension's CUDA functions as this build and this machine have them: missing, without a driver, or real."""

from __future__ import annotations

import pytest
import torch

from lordfast.ops import _native
from lordfast.ops.backends.native import cuda_build, cuda_lord

FUNCTIONS = [
    "cuda_pgd_step",
    "cuda_pgd_step_workspace",
    "cuda_lord_forward",
    "cuda_lord_forward_workspace",
    "cuda_lord_backward",
    "cuda_lord_backward_workspace",
]


@pytest.fixture
def cuda_functions(native):
    reason = native.build_info()["cuda"]["reason"]
    if reason:
        pytest.skip(reason)
    return native


def test_there_where_the_build_has_cuda(native):
    built = native.build_info()["cuda"]["reason"] is None
    assert [hasattr(native, name) for name in FUNCTIONS] == [built] * len(FUNCTIONS)


def test_a_machine_without_a_driver(cuda_functions):
    """An error that says so, before anything is read or written."""
    if cuda_functions.cuda_status()["device_count"]:
        pytest.skip("this machine has a CUDA device")
    rest = {"device": 0, "stream": 0, "workspace": 4096, "workspace_bytes": 1 << 20}
    with pytest.raises(RuntimeError, match=r"^cudaGetDevice failed: CUDA error \d+: "):
        cuda_functions.cuda_pgd_step(4096, 4096, 4096, 4096, 1, 8, "float32", "linf", 0.1, 0.1, -1.0, 1.0, 1, **rest)
    with pytest.raises(RuntimeError, match=r"^cudaGetDevice failed: CUDA error \d+: "):
        sizes = (6, 4, 4, 4, 2, 0)
        cuda_functions.cuda_lord_forward(
            4096, 4096, 4096, 4096, [4096] * 7, sizes, "float32", "relu", 1.0, True, **rest
        )


def test_a_build_without_cuda_says_why(monkeypatch):
    class Without:
        @staticmethod
        def build_info():
            return {"cuda": {"version": None, "architectures": [], "reason": "no nvcc was found"}}

    monkeypatch.setattr(_native, "C", Without)
    cuda_build._why_not.cache_clear()
    try:
        expected = "its CUDA part is missing: no nvcc was found"
        assert cuda_build.why_not_on(torch.device("cuda:0")) == expected
        parameters = [torch.zeros(1, 1, device="meta")] * 7
        monkeypatch.setattr(cuda_build, "why_not_on", lambda device: cuda_build._why_not(0))
        x = torch.zeros(1, 1, device="meta")
        assert cuda_lord.FORWARD.refuses(x, None, None, *parameters, 1.0, False, "silu") == expected
    finally:
        cuda_build._why_not.cache_clear()


def test_an_architecture_that_is_not_covered(native, monkeypatch):
    class Newest:
        @staticmethod
        def build_info():
            return {"cuda": {"version": "13.0", "architectures": ["90a-real"], "reason": None}}

    monkeypatch.setattr(_native, "C", Newest)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 0))
    cuda_build._why_not.cache_clear()
    try:
        assert cuda_build.why_not_on(torch.device("cuda:1")) == (
            "it was built for 90a-real, cuda:1 has compute capability 8.0"
        )
    finally:
        cuda_build._why_not.cache_clear()


DEFAULT = ["80-real", "89-real", "90a-real", "90-virtual"]


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        *[(DEFAULT, c, True) for c in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 1))],
        *[(DEFAULT, c, False) for c in ((7, 0), (7, 5))],
        (["90a-real"], (9, 0), True),
        (["90a-real"], (10, 0), False),
        (["90a"], (10, 0), False),
        (["89-real"], (8, 6), False),
        (["80-real"], (9, 0), False),
        (["80"], (9, 0), True),
        (["80-virtual"], (9, 0), True),
        (["100f-real"], (10, 0), True),
        (["120-real"], (10, 0), False),
        (["native"], (9, 0), False),
        ([], (9, 0), False),
    ],
)
def test_what_an_architecture_covers(architectures, capability, expected):
    assert cuda_build.covers(architectures, capability) is expected
