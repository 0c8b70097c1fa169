"""What only a GPU can show: real tuning, the dispatcher's own choice, CUDA graphs."""

from __future__ import annotations

import pytest
import torch

from lordfast.ops.backends.triton import run, tuning
from lordfast.ops.backends.triton.launch import recording
from lordfast.ops.backends.triton.trial import Trial
from lordfast.ops.backends.triton.tuning import Tuner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture
def tuner(monkeypatch, tmp_path):
    monkeypatch.setenv("LORDFAST_CACHE", str(tmp_path))
    monkeypatch.setattr(run, "TUNER", Tuner(Trial))
    return run.TUNER


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes", [((2, 2048), 320, 320, 4, 64), ((4, 77), 768, 320, 4, 16), ((1, 256), 1280, 1280, 32, 16)]
)
def test_every_candidate_is_right_and_one_is_kept(make_case, here, tuner, caplog, dtype, sizes):
    case = here(make_case(*sizes, dtype=dtype, trainable=torch.float32)).leaves()
    y, logit = case.fused(backend="triton")
    torch.autograd.grad([y, logit], case.tensors, [torch.ones_like(y), torch.ones_like(logit)])
    assert "is out" not in caplog.text
    assert len(tuner._known) == 2 and not any(isinstance(choice, str) for choice in tuner._known.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tuned", [False, True])
def test_cuda_graphs(make_case, here, tuner, dtype, tuned):
    case = here(make_case((2, 300), 320, 320, 4, 16, dtype=dtype, trainable=torch.float32)).leaves()

    def step():
        y, logit = case.fused(backend="triton")
        return [y, logit, *torch.autograd.grad([y, logit], case.tensors, [torch.ones_like(y), torch.ones_like(logit)])]

    if not tuned:  # the kernels must be compiled before, the choice need not be made
        tuner._may_tune = lambda case: False
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = step()
    case["x"].data.add_(1)
    case["lord_B"].data.mul_(2)  # nothing derived from the parameters may have been frozen into the graph
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


def test_other_streams_and_devices(make_case, here, tuner):
    case = here(make_case((2, 300), 320, 320, 4, 16, dtype=torch.float32))
    expected = case.fused(backend="triton")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), recording() as made:
        got = case.fused(backend="triton")
    stream.synchronize()
    assert len(made) == 1 and all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_timing_is_of_the_device():
    x = torch.randn(4096, 4096, device="cuda")
    assert 0 < tuning.measure(lambda: x.add_(1)) < tuning.measure(lambda: [x.add_(1) for _ in range(8)])
