"""On a CUDA device: the native backend against the reference, graphs, streams, and the same bits every time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
import torch

import lordfast.ops as ops
from lordfast.ops.backends.native import cuda_build

pytestmark = pytest.mark.gpu
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
GRANULARITIES = pytest.mark.parametrize("granularity", ["token", "sample"])
DEVICE = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def native_on_cuda(native):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    why = cuda_build.why_not_on(DEVICE)
    if why:
        pytest.skip(why)
    with ops.use_backend("native"):
        yield


def to_device(case, device=DEVICE):
    return replace(case, tensors=tuple(None if t is None else t.to(device) for t in case.tensors))


def cotangents(case, seed=0):
    x, n = case["x"], case["lord_B"].shape[0]
    g = torch.Generator().manual_seed(seed)
    lead = x.shape[:1] if case.granularity == "sample" else x.shape[:-1]
    return torch.randn(*x.shape[:-1], n, generator=g).to(x), torch.randn(lead, generator=g).to(x.device)


@GRANULARITIES
@DTYPES
@pytest.mark.parametrize("sizes", [(256, 320, 320, 4, 64), (33, 77, 130, 17, 5), (64, 768, 64, 64, 130)], ids=str)
def test_twice_the_eager_error(make_case, outcome, dtype, granularity, sizes):
    tokens, *rest = sizes
    own, eager, size = defaultdict(float), defaultdict(float), defaultdict(float)
    for seed in range(16):
        case = make_case((2, tokens), *rest, dtype=dtype, trainable=torch.float32, granularity=granularity, seed=seed)
        case = to_device(case)
        grads = cotangents(case, seed)
        exact = outcome(case.to(torch.float64), "eager", *grads)
        for total, which in ((own, "fused"), (eager, "eager")):
            for name, t in outcome(case, which, *grads).items():
                total[name] += float((t.double() - exact[name]).square().sum())
        for name, t in exact.items():
            size[name] += float(t.square().sum())
    report = {name: ((own[name] / size[name]) ** 0.5, (eager[name] / size[name]) ** 0.5) for name in size}
    assert all(a <= 2 * b for a, b in report.values()), report


@DTYPES
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("numel", [1, 17, 4097, 3 * 512 * 512])
def test_pgd_step_has_the_bits_of_the_cpu(step_inputs, assert_same_bits, dtype, norm, numel):
    inputs = step_inputs(3, numel, dtype)
    options = {"step_size": 0.03, "eps": 0.05, "norm": norm}
    expected = ops.pgd_step(*inputs, **options)
    got = ops.pgd_step(*(t.to(DEVICE) for t in inputs), **options)
    assert_same_bits(got.cpu(), expected)


@GRANULARITIES
@DTYPES
def test_the_same_bits_every_time(make_case, outcome, dtype, granularity):
    case = to_device(
        make_case((4, 1000), 320, 640, 8, 64, dtype=dtype, trainable=torch.float32, granularity=granularity)
    )
    grads = cotangents(case)
    first = outcome(case, "fused", *grads)
    for _ in range(5):
        for name, t in outcome(case, "fused", *grads).items():
            assert torch.equal(t, first[name]), name


@GRANULARITIES
def test_a_graph_replays(make_case, granularity):
    case = to_device(make_case((2, 500), 320, 320, 4, 64, trainable=torch.float32, dtype=torch.bfloat16,
                               granularity=granularity)).leaves()  # fmt: skip
    grads = cotangents(case)

    def step():
        y, logit = case.fused()
        found = torch.autograd.grad([y, logit], case.tensors, list(grads))
        image = ops.pgd_step(y.detach(), y.detach(), grads[0], step_size=0.1, eps=0.1, norm="l2")
        return [y, logit, image, *found]

    side = torch.cuda.Stream(DEVICE)
    side.wait_stream(torch.cuda.current_stream(DEVICE))
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream(DEVICE).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (1, 2):
        with torch.no_grad():
            case["x"].copy_(torch.randn(case["x"].shape, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        torch.cuda.synchronize(DEVICE)
        for got, expected in zip(captured, step(), strict=True):
            assert torch.equal(got, expected)


def test_another_stream(make_case):
    """The kernels wait for what is before them on the stream that is current, and on no other."""
    case = to_device(make_case((2, 2000), 640, 640, 4, 64, dtype=torch.float32))
    expected = case.fused()
    x, late = case["x"], torch.full_like(case["x"], float("nan"))
    stream = torch.cuda.Stream(DEVICE)
    stream.wait_stream(torch.cuda.current_stream(DEVICE))
    with torch.cuda.stream(stream):
        busy = torch.randn(4096, 4096, device=DEVICE)
        for _ in range(20):
            busy = busy @ busy / 4096
        late.copy_(x)
        got = case.with_x(late).fused()
    torch.cuda.current_stream(DEVICE).wait_stream(stream)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_a_launch_that_fails_names_the_kernel(native):
    x = torch.zeros(1, 8, device=DEVICE)
    address = x.data_ptr()
    with pytest.raises(RuntimeError, match=r"^cudaSetDevice failed: CUDA error \d+: "):
        native.cuda_pgd_step(*[address] * 4, 1, 8, "float32", "linf", 0.1, 0.1, -1.0, 1.0, 1, 0, 0, 1000, 0)
    assert torch.equal(x + 1, torch.ones_like(x))  # and the error is gone
