"""What an operation is asked to do here, as far as it matters to the choice of a configuration; and what is refused.

Does not import triton: the dispatcher asks it at every call.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .geometry import MAX_RANK, power_of_two

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_LARGEST = 2**31


@dataclass(frozen=True)
class Case:
    """One call of `op`; `trains` is whether a backward pass forms parameters' gradients, `base` whether there is W."""

    op: str
    device: torch.device
    dtype: torch.dtype
    m: int
    n: int
    k: int
    r: int
    h: int
    base: bool
    per_sample: bool
    activation: str
    precision: str = "highest"  # of fp32 products, as torch has it
    trains: bool = False

    @property
    def bucket(self) -> str:
        """The cases that share a configuration: sizes but N and K up to the next power of two."""
        sizes = f"m{power_of_two(self.m)}-n{self.n}-k{self.k}-r{power_of_two(self.r)}-h{power_of_two(self.h)}"
        flags = ("linear" if self.base else "delta", "sample" if self.per_sample else "token", self.activation)
        dtype = str(self.dtype).removeprefix("torch.")
        return "/".join((self.op, dtype, self.precision, sizes, *flags, "trains" if self.trains else "frozen"))


def _precision() -> str:
    return torch.get_float32_matmul_precision()


def forward_case(x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> Case:
    """The case of `lord_forward`'s arguments."""
    lord_A, lord_B, _, w1, *_, per_sample, activation = rest
    (r, k), n, h = lord_A.shape, lord_B.shape[0], w1.shape[0]
    m = x.shape[:-1].numel()
    return Case(
        "lord_forward", x.device, x.dtype, m, n, k, r, h, weight is not None, per_sample, activation, _precision()
    )


def qkv_case(x: Tensor, weight: list[Tensor], bias: list[Tensor], *rest: Any) -> Case:
    """The case of `lord_qkv_forward`'s arguments."""
    lord_A, lord_B, _, w1, *_, per_sample, activation = rest
    (r, k), n, h = lord_A[0].shape, lord_B[0].shape[0], w1[0].shape[0]
    m = x.shape[:-1].numel()
    return Case("lord_qkv_forward", x.device, x.dtype, m, n, k, r, h, True, per_sample, activation, _precision())


def backward_case(
    grad_y: Tensor | None, grad_logit: Tensor | None, x: Tensor | None, gate_logit: Tensor, u: Tensor, *rest: Any
) -> Case:
    """The case of `lord_backward`'s arguments."""
    weight, _, lord_A, lord_B, _, w1, *_, per_sample, activation, dtype, needs = rest
    (r, k), n, h = lord_A.shape, lord_B.shape[0], w1.shape[0]
    m, trains = u.shape[:-1].numel(), any(needs[3:])
    return Case(
        "lord_backward",
        u.device,
        dtype,
        m,
        n,
        k,
        r,
        h,
        weight is not None,
        per_sample,
        activation,
        _precision(),
        trains,
    )


def refuses_forward(*args: Any) -> str | None:
    """Why `lord_forward` can't run here, or None."""
    return _refuses(forward_case(*args), args[3:10])


def refuses_backward(*args: Any) -> str | None:
    """Why `lord_backward` can't run here, or None."""
    return _refuses(backward_case(*args), args[7:14])


def refuses_qkv(*args: Any) -> str | None:
    """Why `lord_qkv_forward` can't run here, or None."""
    for name, role in zip(
        ("weight", "bias", "lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2"), args[1:10], strict=True
    ):
        if any((t.shape, t.dtype) != (role[0].shape, role[0].dtype) for t in role):
            return f"the three projections have {name} of different shapes or dtypes"
    return _refuses(qkv_case(*args), [t for role in args[3:10] for t in role])


def _refuses(case: Case, parameters: Any) -> str | None:
    if case.dtype not in DTYPES:
        return f"it computes in bfloat16, float16 and float32 only, x is {case.dtype}"
    if case.r > MAX_RANK:
        return f"it takes ranks up to {MAX_RANK}, this is {case.r}"
    widest = max(case.n, case.k, MAX_RANK)
    if max(case.m, widest * max(case.h, MAX_RANK), case.n * case.k) >= _LARGEST:
        return f"it counts tokens and weights in 31 bits; M = {case.m}, N = {case.n}, K = {case.k}, H = {case.h}"
    for t in parameters:
        if t.dtype not in DTYPES:
            return f"it takes parameters in bfloat16, float16 and float32 only, one is {t.dtype}"
    why = _refuses_device(case.device)
    return why or importlib.import_module(f"{__package__}.run").refuses(case)


@cache
def _refuses_device(device: torch.device) -> str | None:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return None if major >= 8 else f"it needs compute capability 8.0 or later, {device} has {major}.{minor}"
    interpreted = importlib.import_module(f"{__package__}.launch").INTERPRETED
    if device.type == "cpu" and interpreted:
        return None
    return f"its kernels are compiled for CUDA devices, these tensors are on {device}"
