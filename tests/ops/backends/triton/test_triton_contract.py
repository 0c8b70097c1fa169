"""The forced Triton backend under torch.library's checks and torch.compile, and its launches a call."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from lordfast.ops import schema
from lordfast.ops.backends.triton import forward
from lordfast.ops.backends.triton.dry import Sizes, launches_per_layer
from lordfast.ops.backends.triton.launch import recording

BASE = ("weight", "bias")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("base", [True, False], ids=["linear", "delta"])
def test_opcheck(make_case, here, tiles, granularity, dtype, base):
    tiles()
    case = here(make_case((2, 3), dtype=dtype, trainable=torch.float32, base=base))
    args = (*case.tensors, case.scaling, granularity == "sample", case.activation, "triton")
    opcheck(schema.lord_forward, args)
    y, logit, u = schema.lord_forward(*args)
    needs = [t is not None for t in case.tensors]
    x, *rest = args[:-1]
    opcheck(schema.lord_backward, (y, logit, x, logit, u, *rest, dtype, needs, "triton"))
    opcheck(
        schema.lord_backward, (None, logit, None, logit, u, *rest, dtype, [n in (0, 4) for n in range(10)], "triton")
    )


@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_compiled_gradients(make_case, case_of, here, tiles, granularity):
    tiles()
    like = here(make_case(dtype=torch.float32, granularity=granularity))

    def loss(*tensors):
        y, logit = case_of(list(tensors), like).fused(backend="triton")
        return (y * y).sum() + logit.sin().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for seed in (1, 2):
        case = here(make_case(dtype=torch.float32, granularity=granularity, seed=seed)).leaves()
        with recording() as made:
            got = compiled(*case.tensors)
            grads = torch.autograd.grad(got, case.tensors)
        assert len(made) == {"token": 1 + 3, "sample": 2 + 4}[granularity]
        expected = loss(*case.tensors)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(grads, torch.autograd.grad(expected, case.tensors))


# (granularity, wanted gradients): launches of the forward and of the backward pass
LAUNCHES = {
    ("token", ("x",)): (1, 2),
    ("token", ("x", "lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")): (1, 3),
    ("token", ("lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")): (1, 3),
    ("token", ("lord_B_adv", "b2")): (1, 2),
    ("token", BASE): (1, 0),
    ("sample", ("x",)): (2, 3),
    ("sample", ("x", "lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")): (2, 4),
}


@pytest.mark.parametrize(("granularity", "wanted"), LAUNCHES, ids=str)
def test_launches_of_a_layer(make_case, here, tiles, granularity, wanted):
    tiles()
    case = here(make_case((2, 9), 18, 20, 3, 5, dtype=torch.float32, granularity=granularity)).leaves(*wanted)
    with recording() as made:
        y, logit = case.fused(backend="triton")
        in_forward = len(made)
        torch.autograd.grad([y, logit], [case[n] for n in wanted], [torch.ones_like(y), torch.ones_like(logit)])
    assert (in_forward, len(made) - in_forward) == LAUNCHES[granularity, wanted]


def test_q_k_and_v_are_one_launch(make_case, here, tiles):
    rows = tiles()
    roles = [[t] * 3 for t in here(make_case((2, 9), dtype=torch.float32)).tensors]
    with recording() as made:
        forward.lord_qkv_forward(rows["forward"], roles[0][0], *roles[1:], 2.0, False, "silu")
    assert len(made) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "sizes", [Sizes(), Sizes(16384, 320, 320), Sizes(1024, 1280, 1280), Sizes(308, 320, 768)], ids=str
)
def test_launches_per_layer(dtype, sizes):
    assert launches_per_layer(sizes, dtype) == {"lord_forward": 1, "lord_backward": 3, "lord_qkv_forward": 1}
    in_an_attack = launches_per_layer(sizes, dtype, wanted=("x",))
    assert in_an_attack == {"lord_forward": 1, "lord_backward": 2, "lord_qkv_forward": 1}


def test_recording_without_running(make_case, here, tiles):
    rows = tiles()
    case = here(make_case((2, 9), dtype=torch.float32))
    with recording(execute=False) as made:
        y, _, _ = forward.lord_forward(rows["forward"], *case.tensors, 2.0, False, "silu")
    assert [launch.kernel.fn.__name__ for launch in made] == ["forward_kernel"]
    assert y.isnan().all()
