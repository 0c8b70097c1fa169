"""The bytes of living tensors, against hand counts, and what a process held at most."""

from __future__ import annotations

import contextlib
import sys

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from lordfast.profiling.live import LiveBytes
from lordfast.profiling.resident import peak_bytes, reset_peak, status

ROW = 10 * 100 * 4
"""Bytes of x."""


@pytest.fixture(params=["real", "fake"])
def _tensors(request):
    with FakeTensorMode() if request.param == "fake" else contextlib.nullcontext():
        yield


@pytest.mark.usefixtures("_tensors")
def test_forward_and_backward_of_a_linear_layer():
    linear = nn.Linear(100, 200, bias=False)
    x = torch.empty(10, 100)
    with LiveBytes() as live:
        y = linear(x)
        assert live.now == live.peak == 2 * ROW
        z = y.relu()
        assert live.now == 4 * ROW
        # Autograd keeps the result of relu and not what went into it.
        del y
        assert live.now == 2 * ROW and live.peak == 4 * ROW
        live.peak = live.now
        z.sum().backward()
        # The gradient of the weight; at the peak also that at the result, and two scalars: the sum and its gradient.
        weight = 100 * 200 * 4
        assert live.now == 2 * ROW + weight
        assert live.peak == 4 * ROW + weight + 8
        del z
        linear.weight.grad = None
        assert live.now == 0


@pytest.mark.usefixtures("_tensors")
def test_views_and_changes_in_place_are_no_memory_of_their_own():
    x = torch.empty(10, 100)
    with LiveBytes() as live:
        x.add_(1)
        kept = [x.t(), x[3:], x.view(100, 10)]
        assert live.now == 0
        copy = x.clone()
        kept += [copy[2:], copy.t()]
        del copy
        assert live.now == ROW
        kept.clear()
        assert live.now == 0 and live.peak == ROW


@pytest.mark.usefixtures("_tensors")
@pytest.mark.parametrize("again", [False, True], ids=["kept", "checkpointed"])
def test_what_a_chain_keeps_for_its_backward_pass(again):
    layers = nn.ModuleList(nn.Sequential(nn.Linear(100, 100), nn.Tanh()) for _ in range(5)).requires_grad_(False)
    x = torch.empty(10, 100, requires_grad=True)
    with LiveBytes() as live:
        y = x
        for layer in layers:
            y = checkpoint(layer, y, use_reentrant=False) if again else layer(y)
        # tanh keeps its result: five of them; a checkpoint keeps what goes in, of which the first is x.
        assert live.now == 5 * ROW
        live.peak = live.now
        y.sum().backward()
        assert live.peak - 5 * ROW <= (5 if again else 3) * ROW


def test_what_was_there_before_is_not_counted():
    before = torch.ones(1000)
    with LiveBytes() as live:
        after = before + 0
        assert live.now == 4000
        del before
        assert live.now == 4000
        del after
        assert live.now == 0


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of resident memory are reset on Linux alone")
def test_the_peak_is_what_was_held_at_most():
    def hold() -> None:
        held = bytearray(200 * 2**20)
        held[:: 2**12] = b"x" * len(held[:: 2**12])

    before = reset_peak()
    assert 190 < peak_bytes(hold, torch.device("cpu")) / 2**20 < 300
    assert (reset_peak() - before) / 2**20 < 50
    assert status("VmHWM") >= status("VmRSS") > 2**20
