"""What an operation must move and compute: compulsory bytes and FLOPs, whoever runs it and however.

Bytes count every input read once and every output written once, small parameters as a fused kernel keeps them: A and
C = s [B, B'] in x's dtype, P = s W1 B and all of the gate in fp32. Biases are left out (N numbers). A multiply-add is
two FLOPs. An eager formula that moves more gets no credit for it: its GB/s are those of the work asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

_FP32 = 4


@dataclass(frozen=True)
class Cost:
    """Compulsory work of one call."""

    flops: float
    bytes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


def bare_forward(m: int, k: int, n: int, size: int) -> Cost:
    """y = x W^T + bias: x (M, K), W (N, K), y (M, N) of `size` bytes an element."""
    return Cost(2 * m * k * n, size * (m * k + n * k + m * n))


def bare_backward(m: int, k: int, n: int, size: int, *, x_grad: bool = True) -> Cost:
    """dx = dY W; nothing where x wants no gradient, W being frozen."""
    return bare_forward(m, n, k, size) if x_grad else Cost(0, 0)


def lord_forward(m: int, k: int, n: int, r: int, h: int, size: int) -> Cost:
    """Eq. 4-5 folded: the base, u = x A^T, the gate act(P u + b1) . w2, and the rank-2r update E C^T.

    Writes y, and u (M, r) and gate_logit (M,) in fp32.
    """
    gate = 2 * m * h * r + 2 * m * h
    flops = 2 * m * k * r + gate + 2 * m * 2 * r * n
    small = size * (r * k + 2 * r * n) + _FP32 * (h * r + 2 * h)
    return bare_forward(m, k, n, size) + Cost(flops, small + _FP32 * m * (r + 1))


def lord_backward(m: int, k: int, n: int, r: int, h: int, size: int, *, x_grad: bool = True) -> Cost:
    """The gradients of x (unless `x_grad` is False), A, B, B' and the gate, from dY, x, u and gate_logit.

    v = dY C and dC = dY^T E pass over dY, dx = dY W + du A, dA = du^T x; the gate takes P u (recomputed), da P and
    dP = da^T u, and M H for each of db1, da (two) and dw2 (two).
    """
    gate = 3 * 2 * m * h * r + 5 * m * h
    flops = 2 * (2 * m * n * 2 * r) + 2 * m * r * k + gate
    moved = size * (m * n + m * k + 2 * r * n) + _FP32 * m * (r + 1)
    gradients = _FP32 * (r * k + 2 * r * n + h * n + 2 * h)
    cost = Cost(flops, moved + gradients + _FP32 * (h * r + 2 * h))
    if not x_grad:
        return cost
    return cost + Cost(2 * m * k * n + 2 * m * r * k, size * (n * k + r * k + m * k))


def lora_forward(m: int, k: int, n: int, rank: int, size: int) -> Cost:
    """A plain LoRA in fp32 on the same base: y = x W^T + bias + s (x A^T) B^T."""
    return bare_forward(m, k, n, size) + Cost(2 * m * rank * (k + n), _FP32 * rank * (k + n))


def lora_backward(m: int, k: int, n: int, rank: int, size: int, *, x_grad: bool = True) -> Cost:
    """The gradients of x (unless `x_grad` is False), A and B of a plain LoRA."""
    moved = size * m * (n + k) + 2 * _FP32 * rank * (k + n)
    cost = Cost(2 * m * rank * (2 * n + k), moved)
    if not x_grad:
        return cost
    return cost + Cost(2 * m * k * n + 2 * m * rank * k, size * (n * k + m * k))


def pgd_step(numel: int, size: int, norm: str) -> Cost:
    """One step of PGD: reads x, x0 and the gradient, writes x, four arrays whatever the norm.

    linf: sign, add, two subtractions and four comparisons an element; l2 has its two norms and divisions besides.
    """
    return Cost((8 if norm == "linf" else 14) * numel, 4 * size * numel)


def inplace_add(numel: int, size: int) -> Cost:
    """x += y: two arrays read, one written."""
    return Cost(numel, 3 * size * numel)


def copy(numel: int, size: int) -> Cost:
    """One array read, one written."""
    return Cost(0, 2 * size * numel)
