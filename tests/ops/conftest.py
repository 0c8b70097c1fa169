"""What the tests of the operations share: random arguments, and Eq. 4-5 written out literally."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import lordfast.ops as ops

NAMES = ("x", "weight", "bias", "lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")
ACTIVATIONS = {"relu": torch.relu, "silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu}


@dataclass(frozen=True)
class Case:
    """The tensors of one call, in the order of NAMES, and its options."""

    tensors: tuple[Tensor | None, ...]
    scaling: float = 2.0
    granularity: str = "token"
    activation: str = "silu"

    def leaves(self, *wanted: str) -> Case:
        """Fresh leaves; those named (all, if none is) require gradients."""
        fresh = [
            None if t is None else t.detach().clone().requires_grad_(not wanted or name in wanted)
            for name, t in zip(NAMES, self.tensors, strict=True)
        ]
        return replace(self, tensors=tuple(fresh))

    def to(self, dtype: torch.dtype) -> Case:
        return replace(self, tensors=tuple(None if t is None else t.to(dtype) for t in self.tensors))

    def with_x(self, x: Tensor) -> Case:
        return replace(self, tensors=(x, *self.tensors[1:]))

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[NAMES.index(name)]
        assert tensor is not None
        return tensor

    def fused(self, **options: object) -> tuple[Tensor, Tensor]:
        """lord_linear, or lord_delta where there is no weight."""
        x, weight, bias, a, b, b_adv, *gate = self.tensors
        options = {"granularity": self.granularity, "activation": self.activation, **options}
        if weight is None:
            return ops.lord_delta(x, a, b, b_adv, ops.Gate(*gate), self.scaling, **options)
        return ops.lord_linear(x, weight, bias, a, b, b_adv, ops.Gate(*gate), self.scaling, **options)

    def eager(self) -> tuple[Tensor, Tensor]:
        """Eq. 4 and 5 as the paper has them, nothing folded, everything in x's dtype."""
        x, weight, bias, *rest = self.tensors
        a, b, b_adv, w1, b1, w2, b2 = (t.to(x.dtype) for t in rest)
        u = x @ a.T
        branch, branch_adv = self.scaling * (u @ b.T), self.scaling * (u @ b_adv.T)
        logit = ACTIVATIONS[self.activation](branch @ w1.T + b1) @ w2 + b2
        lam = torch.sigmoid(logit)[..., None]
        if self.granularity == "sample":
            logit = logit.reshape(x.shape[0], -1).mean(1)
            lam = torch.sigmoid(logit).reshape(-1, *[1] * (x.ndim - 1))
        y = branch + lam * branch_adv
        if weight is not None:
            y = torch.nn.functional.linear(x, weight, bias) + y
        return y, logit


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    """A factory of random cases, all numbers of order one."""

    def make(
        lead: tuple[int, ...] = (2, 3),
        k: int = 7,
        n: int = 5,
        r: int = 3,
        h: int = 4,
        *,
        dtype: torch.dtype = torch.float64,
        trainable: torch.dtype | None = None,
        base: bool = True,
        bias: bool = True,
        seed: int = 0,
        **options: object,
    ) -> Case:
        g = torch.Generator().manual_seed(seed)

        def rand(*shape: int, fan: int = 1) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64) / fan**0.5

        x, weight, offset = rand(*lead, k).to(dtype), rand(n, k, fan=k).to(dtype), rand(n).to(dtype)
        small = (rand(r, k, fan=k), rand(n, r, fan=4 * r), rand(n, r, fan=4 * r))
        gate = (rand(h, n, fan=n), rand(h), rand(h, fan=h), rand())
        rest = (t.to(trainable or dtype) for t in (*small, *gate))
        return Case((x, weight if base else None, offset if base and bias else None, *rest), **options)

    return make


@pytest.fixture(scope="session")
def outcome() -> Callable[..., dict[str, Tensor]]:
    """`outcome(case, "fused" | "eager", grad_y, grad_logit)`: y, gate_logit and every gradient, by name."""

    def run(case: Case, which: str, grad_y: Tensor, grad_logit: Tensor) -> dict[str, Tensor]:
        case = case.leaves()
        y, logit = getattr(case, which)()
        present = [name for name, t in zip(NAMES, case.tensors, strict=True) if t is not None]
        cotangents = [grad_y.to(y.dtype), grad_logit.to(logit.dtype)]
        grads = torch.autograd.grad([y, logit], [case[name] for name in present], cotangents)
        return {"y": y.detach(), "gate_logit": logit.detach(), **dict(zip(present, grads, strict=True))}

    return run


@pytest.fixture(scope="session")
def case_of() -> Callable[[list[Tensor | None], Case], Case]:
    """`case_of(tensors, like)`: a case with other tensors, for functions that get theirs from elsewhere."""
    return lambda tensors, like: replace(like, tensors=tuple(tensors))
