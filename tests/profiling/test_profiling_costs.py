"""Bytes and FLOPs against numbers worked out by hand for the layers of Stable Diffusion 1.5 (r = 4, H = 64, bf16)."""

from __future__ import annotations

import pytest

from lordfast.profiling import costs

# M, K, N; then GFLOP and MB, forward and backward.
TABLE = [
    ((16384, 320, 320), (3.49, 21.5), (3.64, 32.1)),
    ((4096, 640, 640), (3.42, 11.4), (3.49, 16.8)),
    ((1024, 1280, 1280), (3.39, 8.6), (3.42, 11.6)),
]


def rounded(cost: costs.Cost, flop_digits: int, byte_digits: int) -> tuple[float, float]:
    return round(cost.flops / 1e9, flop_digits), round(cost.bytes / 1e6, byte_digits)


@pytest.mark.parametrize(("shape", "forward", "backward"), TABLE, ids=str)
def test_the_image_layers(shape, forward, backward):
    assert rounded(costs.lord_forward(*shape, 4, 64, 2), 2, 1) == forward
    assert rounded(costs.lord_backward(*shape, 4, 64, 2), 2, 1) == backward


def test_the_text_layer_has_no_dx():
    assert rounded(costs.lord_forward(308, 768, 320, 4, 64, 2), 3, 2) == (0.155, 1.18)
    assert rounded(costs.lord_backward(308, 768, 320, 4, 64, 2, x_grad=False), 3, 2) == (0.006, 0.79)


def test_every_term_of_a_small_layer():
    m, k, n, r, h = 10, 7, 5, 3, 2
    base = 2 * 10 * 7 * 5
    down, up = 2 * 10 * 7 * 3, 2 * 10 * 6 * 5
    gate = 2 * 10 * 2 * 3 + 2 * 10 * 2
    forward = costs.lord_forward(m, k, n, r, h, 2)
    assert forward.flops == base + down + up + gate
    big = 2 * (70 + 35 + 50)  # x, W, y in bf16
    small = 2 * (21 + 30) + 4 * (6 + 4)  # A and C in bf16; P, b1, w2 in fp32
    assert forward.bytes == big + small + 4 * (30 + 10)  # u and gate_logit in fp32

    backward = costs.lord_backward(m, k, n, r, h, 2)
    gate = 3 * 2 * 10 * 2 * 3 + 5 * 10 * 2
    assert backward.flops == base + 2 * up + 2 * down + gate
    big = 2 * (50 + 35 + 70 + 70)  # dY, W, x, dx
    gradients = 4 * (21 + 30 + 10 + 4)  # dA; dB and dB'; dW1; db1 and dw2
    assert backward.bytes == big + small + 4 * (30 + 10) + gradients

    alone = costs.lord_backward(m, k, n, r, h, 2, x_grad=False)
    assert backward.flops - alone.flops == base + down
    assert backward.bytes - alone.bytes == 2 * (35 + 70 + 21)  # W, dx, and A, which only dx reads


def test_the_baselines():
    assert costs.bare_forward(10, 7, 5, 4) == costs.Cost(700, 4 * (70 + 35 + 50))
    assert costs.bare_backward(10, 7, 5, 4) == costs.Cost(700, 4 * (50 + 35 + 70))
    assert costs.bare_backward(10, 7, 5, 4, x_grad=False) == costs.Cost(0, 0)
    lora = costs.lora_forward(10, 7, 5, 6, 2)
    assert lora == costs.Cost(700 + 2 * 10 * 6 * 12, 2 * (70 + 35 + 50) + 4 * 6 * 12)
    # du = dY B, dB = dY^T u, dA = du^T x, and with dx du A.
    both, alone = (costs.lora_backward(10, 7, 5, 6, 2, x_grad=x_grad) for x_grad in (True, False))
    assert alone.flops == 2 * 10 * 6 * (5 + 5 + 7) and both.flops == alone.flops + 700 + 2 * 10 * 6 * 7
    assert alone.bytes == 2 * 10 * 12 + 2 * 4 * 6 * 12 and both.bytes == alone.bytes + 2 * (35 + 70)


def test_a_pgd_step_moves_four_arrays_an_add_three_and_a_copy_two():
    assert costs.pgd_step(1000, 2, "linf").bytes == costs.pgd_step(1000, 2, "l2").bytes == 8000
    assert costs.inplace_add(1000, 2).bytes == 6000
    assert costs.copy(1000, 2).bytes == 4000
