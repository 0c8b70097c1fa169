"""Which gradients are computed, what is kept for them, and how they get on with checkpointing."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lordfast.ops import dispatch
from lordfast.ops.backends.reference.lord import INPUTS, lord_backward, lord_forward

LORD = ("lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")
# M = 6, K = 7, N = 5, r = 3 and H = 4 in every case here: no two products of them that matter are equal.
M, K, N, R, H = 6, 7, 5, 3, 4

SUBSETS = [
    ("x",),  # an attack on a frozen model
    LORD,  # Stage 1 on text keys and values
    ("x", *LORD),
    ("lord_A", "lord_B"),
    ("lord_B_adv",),
    ("w1", "b1", "w2", "b2"),
    ("w2",),
    ("b2",),
    ("weight",),
    ("bias", "x"),
]


def total(y: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
    return y.sin().sum() + logit.square().sum()


@pytest.mark.parametrize("wanted", SUBSETS, ids="-".join)
@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_frozen_subsets(make_widest, backend, monkeypatch, wanted, granularity):
    case = make_widest(granularity=granularity)
    everything = case.to(torch.float64).leaves()
    expected = dict(zip(INPUTS, torch.autograd.grad(total(*everything.eager()), everything.tensors), strict=True))

    made = []
    plain_run = dispatch.run

    def spying_run(op, *args):
        result = plain_run(op, *args)
        if op == "lord_backward":
            made.append([tuple(t.shape) for t in result])
        return result

    monkeypatch.setattr("lordfast.ops.schema.run", spying_run)
    some = case.leaves(*wanted)
    total(*some.fused()).backward()
    assert made == [[tuple(some[name].shape) for name in INPUTS if name in wanted]]
    for name in INPUTS:
        if name in wanted:
            backend.assert_close(some[name].grad, expected[name], name)
        else:
            assert some[name].grad is None


class Products(TorchDispatchMode):
    """Records the shapes of all results inside."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and func.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "mv"):
            self.shapes.add(tuple(result.shape))
        return result


def products(case, *wanted: str) -> set[tuple[int, ...]]:
    x, *parameters = case.tensors
    options = (case.scaling, False, case.activation)
    y, logit, u = lord_forward(x, *parameters, *options)
    needs = [name in wanted for name in INPUTS]
    with Products() as seen:
        lord_backward(torch.ones_like(y), None, x, logit, u, *parameters, *options, x.dtype, needs)
    return seen.shapes


def test_unwanted_products_are_not_formed(make_case):
    case = make_case()
    dx, da, dw = (M, K), (R, K), (N, K)
    by_subset = {("x",): {dx}, LORD: {da}, ("lord_B_adv", "w2", "b2"): set(), ("weight",): {dw}, ("w1",): set()}
    for wanted, expected in by_subset.items():
        assert products(case, *wanted) & {dx, da, dw} == expected, wanted
    # P itself is (H, R) as well and always formed: dP shows in the products it enters, for W1 (H, N) and for B (N, R).
    assert (H, N) in products(case, "w1")
    assert (H, N) not in products(case, "x", "lord_A", "lord_B", "lord_B_adv", "b1", "w2", "b2")
    assert (N, R) not in products(case, "x", "lord_A", "w1")


@pytest.mark.parametrize("which", [0, 1], ids=["y", "gate_logit"])
@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("base", [True, False], ids=["linear", "delta"])
def test_loss_on_one_output_only(make_widest, backend, which, granularity, base):
    case = make_widest(granularity=granularity, base=base).leaves()
    present = [t for t in case.tensors if t is not None]
    got = torch.autograd.grad(case.fused()[which].sin().sum(), present)
    expected = torch.autograd.grad(case.eager()[which].sin().sum(), present, allow_unused=True, materialize_grads=True)
    for a, b in zip(got, expected, strict=True):
        backend.assert_close(a, b)


def saved_by(f) -> list[torch.Tensor]:
    kept: list[torch.Tensor] = []

    def pack(t):
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        f()
    return kept


@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_nothing_large_is_kept(make_widest, granularity):
    m, k, n, h = 64, 11, 13, 17
    case = make_widest((2, 32), k, n, 3, h, granularity=granularity).leaves()
    kept = saved_by(case.fused)
    parameters = {t.data_ptr() for t in case.tensors}
    activations = sorted(t.numel() for t in kept if t.data_ptr() not in parameters)
    assert activations == sorted([m * 3, 2 if granularity == "sample" else m])  # u and gate_logit
    assert not {m * n, m * h} & {t.numel() for t in kept}
    assert any(t.data_ptr() == case["x"].data_ptr() for t in kept)


def test_x_is_kept_only_where_it_is_read(make_widest):
    case = make_widest().leaves("x", "lord_B", "w1")
    assert not any(t.shape == case["x"].shape for t in saved_by(case.fused))


def test_no_grad_and_inference_mode(make_widest):
    case = make_widest().leaves()
    with_grad = case.fused()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y, logit = case.fused()
        assert not y.requires_grad and not logit.requires_grad
        assert torch.equal(y, with_grad[0]) and torch.equal(logit, with_grad[1])
    assert with_grad[0].requires_grad and with_grad[1].requires_grad


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(make_widest, case_of, use_reentrant):
    case = make_widest()

    def gradients(wrap):
        leaves = case.leaves()
        run = lambda *tensors: case_of(list(tensors), case).fused()  # noqa: E731
        total(*wrap(run, *leaves.tensors)).backward()
        return [t.grad for t in leaves.tensors]

    plain = gradients(lambda run, *tensors: run(*tensors))
    again = gradients(lambda run, *tensors: checkpoint(run, *tensors, use_reentrant=use_reentrant))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_no_second_derivative(make_widest):
    case = make_widest().leaves()
    (dx,) = torch.autograd.grad(case.fused()[0].square().sum(), [case["x"]], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_shared_x(make_widest, backend):
    """q, k and v read one x: its gradients add up."""
    q, k = make_widest(seed=1).leaves(), make_widest(seed=2).leaves()
    k = k.with_x(q["x"])
    (total(*q.fused()) + total(*k.fused())).backward()
    got = q["x"].grad.clone()
    q["x"].grad = None
    (total(*q.eager()) + total(*k.eager())).backward()
    backend.assert_close(got, q["x"].grad)


def test_forward_mode_raises_where_nothing_requires_a_gradient(make_widest, backend):
    case = make_widest()
    with forward_ad.dual_level():
        dual = case.with_x(forward_ad.make_dual(case["x"], torch.ones_like(case["x"])))
        with pytest.raises(NotImplementedError, match="forward mode AD"):
            dual.fused()
    with pytest.raises(NotImplementedError, match="forward mode AD"):
        torch.func.jvp(lambda x: case.with_x(x).fused()[0], (case["x"],), (torch.ones_like(case["x"]),))
