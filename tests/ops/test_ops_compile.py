"""The operations under torch.library's own checks and under torch.compile(fullgraph=True)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.library import opcheck

from lordfast.ops import pgd_step, schema, use_backend


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def forward_args(case, granularity, backend):
    return (*case.tensors, case.scaling, granularity == "sample", case.activation, backend)


# Of these four choices every two values meet in one of the cases.
@pytest.mark.parametrize(
    ("lead", "granularity", "dtype", "base"),
    [
        ((2, 3), "token", torch.float32, True),
        ((2, 3), "sample", torch.bfloat16, False),
        ((0, 3), "token", torch.bfloat16, True),
        ((0, 3), "sample", torch.float32, False),
        ((4,), "token", torch.float32, False),
        ((4,), "sample", torch.bfloat16, True),
    ],
    ids=str,
)
def test_opcheck_lord(make_case, backend, lead, granularity, dtype, base):
    case = make_case(lead, dtype=dtype, trainable=torch.float32, base=base)
    args = forward_args(case, granularity, backend.name)
    opcheck(schema.lord_forward, args)
    y, logit, u = schema.lord_forward(*args)
    needs = [t is not None for t in case.tensors]
    x, *rest = args[:-1]
    opcheck(schema.lord_backward, (y, logit, x, logit, u, *rest, dtype, needs, backend.name))
    opcheck(
        schema.lord_backward,
        (None, logit, None, logit, u, *rest, dtype, [n in (0, 4) for n in range(10)], backend.name),
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("backend", ["reference", ""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_pgd_step(norm, backend, dtype):
    x, x0, grad = torch.randn(3, 2, 3, 5).to(dtype)
    opcheck(schema.pgd_step, (x, x0, grad, torch.empty_like(x), 0.1, 0.2, -1.0, 1.0, norm, 1, backend))


# Inductor compiles what stands around the operation, which is a box to it: two cases tell whether it fits.
@pytest.mark.parametrize(
    ("compiler", "granularity", "base"),
    [
        *(("aot_eager", granularity, base) for granularity in ("token", "sample") for base in (True, False)),
        ("inductor", "token", True),
        ("inductor", "sample", False),
    ],
)
@pytest.mark.usefixtures("backend")
def test_compiled_gradients(make_case, case_of, compiler, granularity, base):
    like = make_case(dtype=torch.float32, granularity=granularity, base=base)

    def loss(*tensors):
        y, logit = case_of(list(tensors), like).fused()
        return (y * y).sum() + logit.sin().sum()  # torch work around the operation, for the compiler to fuse

    compiled = torch.compile(loss, fullgraph=True, backend=compiler)
    for seed in (1, 2):
        case = make_case(dtype=torch.float32, granularity=granularity, base=base, seed=seed).leaves()
        present = [t for t in case.tensors if t is not None]
        expected, got = loss(*case.tensors), compiled(*case.tensors)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(torch.autograd.grad(got, present), torch.autograd.grad(expected, present))


@pytest.mark.parametrize("wanted", [("x",), ("x", "lord_B"), ("w1", "b2")], ids="-".join)
@pytest.mark.usefixtures("backend")
def test_compiled_with_new_shapes_and_scalings(make_case, case_of, wanted):
    like = make_case(dtype=torch.float32)

    def f(scaling, *tensors):
        return replace(case_of(list(tensors), like), scaling=scaling).fused()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for lead, scaling in [((2, 3), 2.0), ((4, 3), 0.5), ((5, 9), 8.0), ((3, 2), -1.0)]:
        case = make_case(lead, dtype=torch.float32).leaves(*wanted)
        expected, got = f(scaling, *case.tensors), compiled(scaling, *case.tensors)
        torch.testing.assert_close(got, expected)
        grads = [torch.autograd.grad([t.sum() for t in out], [case[n] for n in wanted]) for out in (got, expected)]
        torch.testing.assert_close(*grads)


@pytest.mark.usefixtures("backend")
def test_compiled_without_gradients(make_case):
    case = make_case(dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(case.fused, fullgraph=True, backend="aot_eager")(), case.eager())


def test_compiled_code_sees_use_backend(make_case):
    case = make_case(dtype=torch.float32)
    compiled = torch.compile(lambda: case.fused(), fullgraph=True, backend="aot_eager")
    with use_backend("reference"):
        before = compiled()
    with use_backend("triton"), pytest.raises(ValueError, match="backend='triton' was forced but can't run"):
        compiled()
    with use_backend("reference"):
        assert torch.equal(compiled()[0], before[0])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_pgd_step(norm, in_place):
    x0, x, grad = torch.randn(3, 2, 3, 4, 4)

    def two_steps(x):
        for _ in range(2):
            x = pgd_step(x, x0, grad, step_size=0.1, eps=0.15, norm=norm, out=x if in_place else None)
        return x * 1

    eager, compiled = x.clone(), x.clone()
    expected = two_steps(eager)
    assert torch.equal(torch.compile(two_steps, fullgraph=True)(compiled), expected)
    assert torch.equal(compiled, eager)
    assert torch.equal(eager, x) != in_place
