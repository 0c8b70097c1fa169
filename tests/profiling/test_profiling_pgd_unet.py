"""The benchmarks of a PGD step and of a whole UNet, at sizes where only the numbers matter."""

from __future__ import annotations

import pytest
import torch

from lordfast.adapter.control import lord_layers
from lordfast.diffusion.topologies import build_denoiser, find_topology
from lordfast.ops.backends.reference.lord import lord_backward, lord_forward
from lordfast.ops.backends.reference.pgd import pgd_step
from lordfast.profiling.pgd import NORMS, bench_pgd, make_sets, numbers
from lordfast.profiling.rounds import Effort
from lordfast.profiling.unet import UnetOptions, bench_unet

CPU = torch.device("cpu")
EFFORT = Effort(repeats=1, seconds=0.0, least=1, draws=2)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_steps_that_are_right_and_one_that_is_not(norm, dtype, add_backend):
    def halved(x_adv, x_orig, grad, out, step_size, *rest):
        pgd_step(x_adv, x_orig, grad, out, step_size / 2, *rest)

    add_backend("madeup", pgd_step=halved)
    rows = {row["variant"]: row for row in bench_pgd((2, 3, 16, 16), norm, dtype, CPU, EFFORT)}
    for name in ("eager", "lordfast", "lordfast:reference"):
        assert rows[name]["gate"] == "ok" and rows[name]["median_us"] > 0
    assert rows["lordfast:madeup"]["gate"].startswith("red: x ") and "median_us" not in rows["lordfast:madeup"]
    add, copy = rows["inplace_add"], rows["copy"]
    assert add["ratio_bare"] == 1.0
    assert rows["eager"]["ratio_bare"] == pytest.approx(rows["eager"]["median_us"] / add["median_us"])
    # 4, 3 and 2 arrays.
    arrays = [row["gbps"] * row["median_us"] for row in (rows["lordfast:reference"], add, copy)]
    assert arrays == pytest.approx([a * 2 * 3 * 256 * (4 if dtype == "fp32" else 2) / 1e3 for a in (4, 3, 2)])
    assert (add["M"], add["K"], add["N"]) == (2, 768, 768) and add["case"] == f"{norm} 2x3x16x16"


@pytest.mark.parametrize("norm", NORMS)
def test_the_projection_and_the_range_are_at_work(norm):
    for s in make_sets((2, 3, 16, 16), torch.float64, CPU, 2):
        how = numbers(norm, 768)
        free = {**how, "eps": 1e9, "low": -1e9, "high": 1e9}
        steps = []
        for settings in (how, {**free, "eps": how["eps"]}, free):
            out = torch.full_like(s.x_adv, torch.nan)
            order = ("step_size", "eps", "low", "high", "norm")
            pgd_step(s.x_adv, s.x_orig, s.grad, out, *(settings[name] for name in order), 1)
            steps.append(out)
        assert not torch.equal(steps[0], steps[1]) and not torch.equal(steps[1], steps[2])


@pytest.fixture(scope="module")
def small() -> UnetOptions:
    return UnetOptions(batch=1, hidden=8)


def test_a_whole_unet_of_128_layers(small, add_backend, monkeypatch):
    calls = []

    def counted(*args):
        calls.append(1)
        return lord_forward(*args)

    def wrong(*args):
        grads = lord_backward(*args)
        return [*grads[:-1], grads[-1] * 1.5]

    add_backend("madeup", lord_forward=counted, lord_backward=wrong)
    made = []
    monkeypatch.setattr("lordfast.profiling.unet.unet_variants", _recorded(made))
    unet = build_denoiser(find_topology("sd15-narrow"))
    prepare = {"halved": lambda model: [layer.lord_B["bench"].data.div_(2) for layer in lord_layers(model).values()]}
    rows = {
        (row["direction"], row["variant"]): row
        for row in bench_unet(unet, "sd15-narrow", small, "fp32", EFFORT, prepare)
    }
    bare, lord, lora, prepared = made
    assert bare is unet
    assert len(lord_layers(lord)) == 128 and not lord_layers(bare)
    assert sum(p.numel() for p in bare.parameters()) == pytest.approx(2.45e6, rel=0.01)
    assert not any(p.requires_grad for p in bare.parameters())
    # Weights are shared, adapters are not in them.
    shared = {p.data_ptr() for p in bare.parameters()}
    for model in (lord, lora, *prepared.values()):
        frozen = [p for p in model.parameters() if not p.requires_grad]
        assert {p.data_ptr() for p in frozen} == shared
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}

    for direction in ("forward", "training step"):
        assert rows[direction, "plain"]["gate"] == rows[direction, "peft_lora_2r"]["gate"] == "not checked"
        for name in ("eager", "lordfast", "lordfast:reference"):
            assert rows[direction, name]["gate"] == "ok" and rows[direction, name]["median_us"] > 0
            # A UNet whose gradients are mostly rounding errors would hide any mistake.
            assert 0 < rows[direction, name]["error"] < 1e-4
        assert rows[direction, "eager"]["backend"] == "" and rows[direction, "lordfast:reference"]["backend"]
    # Two draws forward; two training steps; and a call to warm up and one to time.
    assert len(calls) == 128 * (2 + 2 + 2)
    assert rows["forward", "lordfast:madeup"]["gate"] == "ok"
    assert rows["training step", "lordfast:madeup"]["gate"].startswith("red: gate ")
    # What the caller does to a copy is done to that copy alone, and held against the same numbers.
    assert rows["forward", "halved"]["gate"].startswith("red: y ")


def _recorded(made):
    from lordfast.profiling.unet import unet_variants

    def variants(*given):
        made.extend(given[:4])
        return unet_variants(*given)

    return variants


def test_a_training_step_trains_the_adapter_alone(small):
    from lordfast.adapter import LordConfig
    from lordfast.profiling.unet import Stepper, make_sets, with_adapter

    bare = build_denoiser(find_topology("sd15-narrow"))
    model = with_adapter(bare, LordConfig(r=2, gate_hidden=4, init_weights=False), 0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    (inputs,) = make_sets(bare, small, torch.float32, 1)
    stepper = Stepper(model, capturable=False)
    outputs = stepper.gradients(inputs)
    # y, the latents' gradient, and seven parameters of each of 128 layers.
    assert len(outputs) == 2 + 7 * 128 and all(t.isfinite().all() for t in outputs.values())
    stepper.step(inputs)
    # At one token the softmax is constant: nothing reaches the middle block's queries and keys, nor their last bias.
    deaf = {f"mid_block.attentions.0.transformer_blocks.0.attn1.to_{name}.lord_b2.bench" for name in "qk"}
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved | deaf == trainable and len(trainable) == 7 * 128
