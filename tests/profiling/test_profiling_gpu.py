"""On a GPU: graphs are captured, replayed over poison, and right."""

from __future__ import annotations

import pytest
import torch

from lordfast.diffusion.fusion import optimize
from lordfast.diffusion.topologies import build_denoiser, find_topology
from lordfast.profiling.cases import LinearCase
from lordfast.profiling.linear import LinearOptions, bench_linear
from lordfast.profiling.pgd import bench_pgd
from lordfast.profiling.rounds import Effort
from lordfast.profiling.unet import UnetOptions, bench_unet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
EFFORT = Effort(repeats=2, seconds=0.0, least=2, draws=2)


def check(rows):
    timed = [row for row in rows if not row["gate"].startswith("refused: ")]
    assert {row["gate"] for row in timed} == {"ok", "not checked"}
    for row in timed:
        assert row["timing"] == "cuda graph" and row["median_us"] > 0, row
    return {row["variant"] for row in timed}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_layer(dtype):
    case = LinearCase("sd15", tokens=64, k=64, n=48, batch=2)
    rows = bench_linear(case, LinearOptions(compile=False), dtype, torch.device("cuda", 0), EFFORT)
    assert check(rows) >= {"bare_linear", "eager", "peft_lora_2r", "lordfast", "lordfast:reference"}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_step(norm):
    rows = bench_pgd((2, 3, 64, 64), norm, "bf16", torch.device("cuda", 0), EFFORT)
    assert check(rows) >= {"copy", "inplace_add", "eager", "lordfast", "lordfast:reference"}


def test_a_unet():
    unet = build_denoiser(find_topology("sdxl-narrow"), device="cuda")
    rows = bench_unet(unet, "sdxl-narrow", UnetOptions(batch=1, hidden=8), "fp32", EFFORT, {"optimized": optimize})
    assert check(rows) >= {"plain", "eager", "peft_lora_2r", "lordfast", "lordfast:reference"}
