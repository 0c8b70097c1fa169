"""override_lambda: 0 and 1 are merged weights, the gates go on reporting, and it ends where it should."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel

import lordfast
from lordfast.adapter.control import lord_layers


def merged(unet: UNet2DConditionModel, tiny: SimpleNamespace, value: float) -> UNet2DConditionModel:
    """The bare UNet with W + s (B + value B') A in place of W."""
    bare = tiny.unet()
    with torch.no_grad():
        for name, layer in lord_layers(unet).items():
            p, s = layer.parameters_of("lord"), layer.lord_config["lord"].scaling
            bare.get_submodule(name).weight += s * (p["lord_B"] + value * p["lord_B_adv"]) @ p["lord_A"]
    return bare


@pytest.mark.parametrize("options", [{}, {"gate_input": "input", "gate_granularity": "sample"}], ids=str)
@pytest.mark.parametrize("value", [0, 0.25, 1.0])
def test_the_model_is_one_with_merged_weights(value: float, options: dict[str, str], tiny: SimpleNamespace) -> None:
    unet = tiny.unet()
    unet.add_adapter(tiny.config(**options), adapter_name="lord")
    tiny.add_lora(unet)
    with lordfast.collect_gates(unet) as plain:
        before = tiny.run(unet)
    expected = merged(unet, tiny, value)
    tiny.add_lora(expected)
    with lordfast.override_lambda(unet, value):
        found = tiny.run(unet)
        with lordfast.collect_gates(unet) as gates:
            assert torch.equal(tiny.run(unet), found)
    torch.testing.assert_close(found, tiny.run(expected), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, before, rtol=1e-3, atol=1e-4)
    assert gates.keys() == plain.keys() and len(gates) == 32
    # The first layer has seen nothing of the override yet: its gate says what it always says.
    first = next(iter(gates))
    torch.testing.assert_close(gates[first], plain[first], rtol=1e-4, atol=1e-5)
    assert torch.equal(tiny.run(unet), before)


def test_gates_learn_nothing_from_the_output_while_they_are_overridden(
    lord_unet: UNet2DConditionModel, tiny: SimpleNamespace
) -> None:
    with lordfast.override_lambda(lord_unet, 0), lordfast.collect_gates(lord_unet) as gates:
        out = tiny.run(lord_unet)
    out.square().mean().backward(retain_graph=True)
    grads = {name: p.grad for name, p in tiny.lord_parameters(lord_unet).items() if p.grad is not None and p.grad.any()}
    assert {name.split(".lord_")[1].split(".")[0] for name in grads} == {"A", "B"}
    lordfast.detection_loss(gates, torch.tensor([0, 1])).backward()
    assert lord_unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.lord_w1["lord"].grad.any()


def test_as_a_call_it_stays_and_as_a_context_it_ends(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    by_the_gates = tiny.run(lord_unet)
    lordfast.override_lambda(lord_unet, 0)
    clean = tiny.run(lord_unet)
    with pytest.raises(RuntimeError, match="inside"), lordfast.override_lambda(lord_unet, 1):
        assert not torch.equal(tiny.run(lord_unet), clean)
        with lordfast.override_lambda(lord_unet, None):
            assert torch.equal(tiny.run(lord_unet), by_the_gates)
        raise RuntimeError("inside")
    assert torch.equal(tiny.run(lord_unet), clean)
    lordfast.override_lambda(lord_unet, None)
    assert torch.equal(tiny.run(lord_unet), by_the_gates)


def test_one_object_is_a_context_as_often_as_it_is_entered(lord_unet: UNet2DConditionModel) -> None:
    def now() -> float | None:
        (found,) = {layer.lord_lambda for layer in lord_layers(lord_unet).values()}
        return found

    shut = lordfast.override_lambda(lord_unet, 0)
    assert now() == 0
    with shut:
        assert now() == 0
    assert now() is None
    for outside in (None, 0.75):
        lordfast.override_lambda(lord_unet, outside)
        with shut:
            with lordfast.override_lambda(lord_unet, 1), shut:
                assert now() == 0
            assert now() == 0
        assert now() == outside


def test_what_is_no_lambda_is_refused_and_nothing_changes(
    lord_unet: UNet2DConditionModel, tiny: SimpleNamespace
) -> None:
    for value, error, words in (
        (1.5, ValueError, r"value must lie within \[0, 1\], got 1.5"),
        (float("nan"), ValueError, "value must lie within"),
        (True, TypeError, "value must be a number"),
        ("gate", TypeError, "got 'gate' of type str"),
    ):
        with pytest.raises(error, match=words):
            lordfast.override_lambda(lord_unet, value)  # type: ignore[arg-type]
    assert all(layer.lord_lambda is None for layer in lord_layers(lord_unet).values())
    with pytest.raises(ValueError, match="the model has no LoRD"):
        lordfast.override_lambda(tiny.unet(), 0)
