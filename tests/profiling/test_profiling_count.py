"""FLOPs, bytes and waits of operations, against numbers worked out by hand and against torch's own counter."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lordfast.adapter import LordConfig
from lordfast.diffusion import LatentDiffusion
from lordfast.diffusion.fusion import optimize
from lordfast.ops import Gate, lord_delta, lord_linear, lord_qkv, pgd_step
from lordfast.ops.qkv import Projection
from lordfast.profiling import costs
from lordfast.profiling.ceilings import Ceilings
from lordfast.profiling.count import count_flops, counting, mfu
from lordfast.profiling.layers import find_layers
from lordfast.ranges import phase

M, K, N, R, H = 6, 20, 12, 3, 5


def lord(**wants: bool) -> tuple[Any, ...]:
    """x, weight, bias, A, B, B', gate; what is named wants a gradient."""
    g = torch.Generator().manual_seed(0)

    def make(name: str, *shape: int) -> Tensor:
        return torch.randn(shape, generator=g).requires_grad_(wants.get(name, False))

    gate = Gate(make("w1", H, N), make("b1", H), make("w2", H), make("b2"))
    x, weight, bias = make("x", 2, M // 2, K), make("weight", N, K), make("bias", N)
    return x, weight, bias, make("A", R, K), make("B", N, R), make("B_adv", N, R), gate, 2.0


ALL = dict.fromkeys(("x", "A", "B", "B_adv", "w1", "b1", "w2", "b2"), True)


def test_a_linear_layer() -> None:
    x, layer = torch.randn(M, K, requires_grad=True), nn.Linear(K, N)
    count = count_flops(lambda: layer(x).sum().backward(), {"layer": layer})
    assert (count.forward, count.backward, count.recomputed) == (2 * M * K * N, 4 * M * K * N, 0)
    assert count.by_module == {"layer": 6 * M * K * N} and count.total == count.of("layer")


def test_a_convolution() -> None:
    layer, x = nn.Conv2d(3, 8, 3, padding=1, stride=2), torch.randn(2, 3, 10, 10)
    # 5 x 5 places, each of 8 x 3 x 9 multiply-adds, in 2 images.
    assert count_flops(lambda: layer(x)).forward == 2 * 2 * 25 * 8 * 3 * 9


def test_attention() -> None:
    q, k, v = (torch.randn(2, 4, n, 8, requires_grad=True) for n in (16, 7, 7))
    count = count_flops(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    product = 2 * 2 * 4 * 16 * 7 * 8
    # The backward pass makes the scores again, and then a gradient of each factor of each of the two products.
    assert count.forward == 2 * product and count.backward == 5 * product


def test_a_lord_layer_whose_parameters_are_all_trained() -> None:
    count = count_flops(lambda: lord_linear(*lord(**ALL))[0].sum().backward())
    assert count.forward == costs.lord_forward(M, K, N, R, H, 4).flops
    assert count.backward == costs.lord_backward(M, K, N, R, H, 4).flops


def test_a_frozen_lord_layer_computes_the_gradient_of_its_input_alone() -> None:
    count = count_flops(lambda: lord_linear(*lord(x=True))[0].sum().backward())
    recomputed, through_gate = 2 * M * H * R + 2 * M * H, 2 * M * H * R
    assert count.backward == 2 * M * N * 2 * R + recomputed + through_gate + 2 * M * R * K + 2 * M * K * N


def test_branches_alone_take_what_they_need_of_the_gate() -> None:
    count = count_flops(lambda: lord_linear(*lord(B=True, B_adv=True))[0].sum().backward())
    recomputed, through_gate = 2 * M * H * R + 2 * M * H, 2 * M * H * R
    assert count.backward == 2 * (2 * M * N * 2 * R) + recomputed + through_gate


def test_a_lord_layer_over_text_has_no_gradient_of_its_input() -> None:
    wants = {**ALL, "x": False}
    count = count_flops(lambda: lord_linear(*lord(**wants))[0].sum().backward())
    assert count.backward == costs.lord_backward(M, K, N, R, H, 4, x_grad=False).flops


def test_a_delta_leaves_out_the_layer_below() -> None:
    x, _, _, *rest = lord()
    assert count_flops(lambda: lord_delta(x, *rest)).forward == (
        costs.lord_forward(M, K, N, R, H, 4).flops - 2 * M * K * N
    )


def test_three_layers_at_once_are_three_layers() -> None:
    def run() -> None:
        x, weight, bias, a, b, b_adv, gate, scaling = lord()
        lord_qkv(x, *[Projection(weight, bias, a, b, b_adv, gate)] * 3, scaling)

    assert count_flops(run).forward == 3 * costs.lord_forward(M, K, N, R, H, 4).flops


def test_an_image_step() -> None:
    x, original, gradient = (torch.randn(2, 3, 8, 8) for _ in range(3))
    count = count_flops(lambda: pgd_step(x, original, gradient, step_size=0.1, eps=0.2, norm="l2"))
    assert count.forward == costs.pgd_step(2 * 3 * 64, 4, "l2").flops


def denoiser_step(model: LatentDiffusion) -> Callable[[], None]:
    latents, noise = (torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(2))
    text, times = model.embed(["one", "two"]), torch.tensor([3, 500])
    return lambda: model.loss(latents, noise, times, text).sum().backward()


def test_a_whole_model_agrees_with_torchs_counter(demo_model: LatentDiffusion) -> None:
    demo_model.unet.add_adapter(LordConfig(r=4, lord_alpha=32), adapter_name="lord")
    run = denoiser_step(demo_model)
    with FlopCounterMode(display=False) as theirs:
        run()
    count = count_flops(run, {"unet": demo_model.unet})
    assert count.total == theirs.get_total_flops()
    assert "" not in count.by_module, "every product belongs to a layer, in the backward pass too"
    lords = [name for name in count.by_module if name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))]
    assert len(lords) == sum("lord_A" in name for name, _ in demo_model.unet.named_parameters())
    assert count.of("unet.mid_block") == sum(v for n, v in count.by_module.items() if n.startswith("unet.mid_block."))
    assert 0 < count.of("unet.mid_block") < count.of("unet") == count.total


def test_what_checkpointing_computes_again_is_no_work_of_the_model(demo_model: LatentDiffusion) -> None:
    demo_model.unet.add_adapter(LordConfig(r=4, lord_alpha=32), adapter_name="lord")
    run, parts = denoiser_step(demo_model), {"unet": demo_model.unet}
    plain = count_flops(run, parts)
    demo_model.unet.enable_gradient_checkpointing()
    demo_model.unet.train()
    again = count_flops(run, parts)
    assert plain.recomputed == 0 and 0 < again.recomputed < again.forward
    assert (again.forward, again.backward, again.by_module) == (plain.forward, plain.backward, plain.by_module)


def test_gradients_go_to_the_layer_that_ran_and_not_to_its_neighbour() -> None:
    first, second = nn.Linear(4, 8), nn.Linear(8, 16)
    x = torch.randn(3, 4, requires_grad=True)

    def run() -> None:
        y = checkpoint(lambda x: second(first(x)), x, use_reentrant=False)
        (y + 1).sum().backward()

    count = count_flops(run, {"first": first, "second": second})
    assert count.by_module == {"first": 6 * 3 * 4 * 8, "second": 6 * 3 * 8 * 16}
    assert count.recomputed > 0


def test_what_another_thread_computes_again_confuses_nothing() -> None:
    """On a GPU the backward pass, and with it the recomputation, has a thread with numbers of its own."""
    first, second = nn.Linear(4, 8), nn.Linear(8, 16)
    layers = find_layers({"first": first, "second": second})
    y = torch.randn(3, 4, requires_grad=True)
    with counting(layers) as counted:
        loss = checkpoint(lambda x: second(first(x)), y, use_reentrant=False).sum()
        elsewhere = threading.Thread(target=lambda: loss.backward(retain_graph=True))
        elsewhere.start()
        elsewhere.join()
        loss.backward()
    found = {place.layer.name: work.flops for place, work in counted.work.items()
             if place.layer is not None and place.direction == "backward" and work.flops}  # fmt: skip
    assert found == {"first": 4 * 3 * 4 * 8, "second": 4 * 3 * 8 * 16}


def test_bytes_of_a_call_are_its_arrays_once_each() -> None:
    a, b, row = torch.randn(4, 5), torch.randn(5, 6, dtype=torch.float32), torch.randn(5)

    def moved(run: Callable[[], Any]) -> int:
        with counting({}) as counted:
            run()
        return sum(work.bytes for work in counted.work.values())

    assert moved(lambda: a @ b) == 4 * (20 + 30 + 24)
    assert moved(lambda: a.add_(a)) == 4 * 3 * 20
    assert moved(lambda: a + row.expand(4, 5)) == 4 * (20 + 5 + 20), "five numbers lie in memory, not twenty"
    assert moved(lambda: a.t()[1:].reshape(16)[:3]) == 2 * 4 * 16, "one copy, and views"
    assert moved(lambda: torch.empty(100)) == 0
    assert moved(lambda: a.to(torch.bfloat16)) == (4 + 2) * 20


def test_a_wait_is_found_in_its_phase_with_its_line() -> None:
    value = torch.ones(3)
    with counting({}) as counted:
        with phase("quiet"):
            value.sum()
        with phase("loud"), phase("inner"):
            value.sum().item()
            bool(value.nonzero().numel())
    assert {(phases, name): count for (phases, name, _), count in counted.waits.items()} == {
        (("loud", "inner"), "_local_scalar_dense"): 1,
        (("loud", "inner"), "nonzero"): 1,
    }
    assert all("test_profiling_count.py:" in line for _, _, line in counted.waits)


def test_nothing_stays_behind() -> None:
    layer = nn.Linear(K, N)
    with pytest.raises(RuntimeError, match="stop"), counting({}):
        raise RuntimeError("stop")
    count_flops(lambda: layer(torch.randn(M, K)), {"layer": layer})
    assert not layer._forward_hooks and not layer._forward_pre_hooks
    with counting({}) as counted:
        pass
    torch.randn(3) + 1
    assert not counted.work


def test_utilisation_is_a_share_of_the_measured_rate() -> None:
    ceilings = Ceilings(gbps=10.0, gflops={"fp32": 200.0})
    assert mfu(50e9, 0.5, ceilings, "fp32") == pytest.approx(0.5)
    with pytest.raises(ValueError, match="dtype: expected one of fp32"):
        mfu(1, 1, ceilings, "bf16")
    with pytest.raises(ValueError, match="seconds"):
        mfu(1, 0, ceilings, "fp32")


@pytest.mark.parametrize("trained", [True, False])
def test_projections_computed_together_have_the_flops_of_the_single_ones(
    demo_model: LatentDiffusion, trained: bool
) -> None:
    demo_model.unet.add_adapter(LordConfig(r=2, lord_alpha=2, init_weights=False), adapter_name="lord")
    if not trained:
        demo_model.unet.requires_grad_(False)
    latents = torch.zeros(1, 4, 16, 16, requires_grad=True)
    text = demo_model.embed(["a face"])

    def step() -> None:
        demo_model.predict(latents, torch.tensor([9]), text).sum().backward()

    single = count_flops(step)
    optimize(demo_model)
    together = count_flops(step)
    assert (together.forward, together.backward) == (single.forward, single.backward)
