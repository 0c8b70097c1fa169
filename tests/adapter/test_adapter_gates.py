"""collect_gates and the detection loss: exact in every execution mode, and clear about misuse."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

import lordfast

LABELS = torch.tensor([0, 1])


def _gradients(unet: UNet2DConditionModel, tiny: SimpleNamespace) -> dict[str, Tensor]:
    """Gradients of a loss that takes both roads out of a layer, y and the logit, each needed for some parameter."""
    with lordfast.collect_gates(unet) as gates:
        pred = tiny.run(unet)
    (pred.square().mean() + 0.1 * lordfast.detection_loss(gates, LABELS)).backward()
    return {name: p.grad.clone() for name, p in tiny.lord_parameters(unet).items() if p.grad is not None}


def test_names_are_those_of_the_bare_model(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    with lordfast.collect_gates(lord_unet) as gates:
        assert len(gates) == 0
        tiny.run(lord_unet)
        inside = set(gates)
    expected = {name for name, m in lord_unet.named_modules() if isinstance(m, lordfast.LordLayer)}
    assert set(gates) == inside == expected and len(gates) == 32
    assert all(logit.shape[0] == 2 and logit.ndim == 2 and logit.requires_grad for logit in gates.values())
    tiny.add_lora(lord_unet)
    with lordfast.collect_gates(torch.nn.DataParallel(lord_unet)) as nested:
        tiny.run(lord_unet)
    assert set(nested) == expected


def test_nothing_is_kept_outside_and_copies_inside_are_clean(
    lord_unet: UNet2DConditionModel, tiny: SimpleNamespace
) -> None:
    with lordfast.collect_gates(lord_unet) as gates:
        tiny.run(lord_unet)
        clone = copy.deepcopy(lord_unet)
        pickle.loads(pickle.dumps(lord_unet))
        tiny.run(clone)
        kept = {name: logit.clone() for name, logit in gates.items()}
    tiny.run(lord_unet)
    for name, logit in gates.items():
        assert torch.equal(logit, kept[name])
    assert all(layer._gate_sinks == [] for layer in lord_unet.modules() if isinstance(layer, lordfast.LordLayer))


def test_contexts_of_two_models_and_nested_ones_are_independent(tiny: SimpleNamespace) -> None:
    one, two = tiny.unet(), tiny.unet()
    for unet in (one, two):
        unet.add_adapter(tiny.config(), adapter_name="lord")
    with lordfast.collect_gates(one) as outer:
        tiny.run(one, tiny.inputs(seed=1))
        with lordfast.collect_gates(one) as inner, lordfast.collect_gates(two) as other:
            tiny.run(one, tiny.inputs(seed=2))
        assert len(other) == 0
        tiny.run(two)
    assert len(other) == 0
    for name in outer:
        assert outer[name].shape[0] == 4 and inner[name].shape[0] == 2
        assert torch.equal(outer[name][2:], inner[name])


def test_two_runs_are_joined_along_the_batch(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    halves = [tiny.inputs(seed=seed) for seed in (1, 2)]
    with lordfast.collect_gates(lord_unet) as split:
        for half in halves:
            tiny.run(lord_unet, half)
    with lordfast.collect_gates(lord_unet) as whole:
        tiny.run(lord_unet, tuple(torch.cat(pair) for pair in zip(*halves, strict=True)))
    for name in whole:
        torch.testing.assert_close(split[name], whole[name])
    with lordfast.collect_gates(lord_unet) as mixed:
        tiny.run(lord_unet)
        sample, timestep, text = tiny.inputs()
        tiny.run(lord_unet, (sample[..., :4, :4], timestep, text))
    with pytest.raises(ValueError, match="open one context for each image size"):
        lordfast.detection_loss(mixed, torch.zeros(4))


def test_checkpointing_gives_the_same_bits(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    lord_unet.train()
    eager = _gradients(lord_unet, tiny)
    lord_unet.zero_grad()
    lord_unet.enable_gradient_checkpointing()
    checkpointed = _gradients(lord_unet, tiny)
    assert len(eager) == 32 * 7 and eager.keys() == checkpointed.keys()
    for name, gradient in eager.items():
        assert torch.equal(gradient, checkpointed[name]), name


@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_detection_loss_is_the_mean_of_bce(granularity: str, unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    unet.add_adapter(tiny.config(gate_granularity=granularity), adapter_name="lord")
    with lordfast.collect_gates(unet) as gates:
        tiny.run(unet)
    expected = []
    for name, logit in gates.items():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            continue
        per_sample = [
            F.softplus(logit[0]).mean(),  # -log(1 - lambda): clean
            F.softplus(-logit[1]).mean(),  # -log(lambda): perturbed
        ]
        expected.append(sum(per_sample) / 2)
    assert len(expected) == 24
    for labels in (LABELS, LABELS.bool(), LABELS.double()):
        torch.testing.assert_close(lordfast.detection_loss(gates, labels), torch.stack(expected).mean())


def test_text_projections_do_not_count() -> None:
    clean = {"mid.attn1.to_k": torch.tensor([-3.0]), "mid.attn2.to_q": torch.tensor([-1.0])}
    text = ["mid.attn2.to_k", "mid.attn2.to_v", "b.attn.add_q_proj", "b.attn.add_k_proj", "b.attn.add_v_proj"]
    noisy = clean | {name: torch.tensor([50.0]) for name in text}
    labels = torch.zeros(1)
    assert torch.equal(lordfast.detection_loss(noisy, labels), lordfast.detection_loss(clean, labels))
    assert lordfast.detection_loss(noisy, labels, include=lambda name: True) > 30
    assert lordfast.sees_image("b.attn.to_add_out") and lordfast.sees_image("x.attn1.to_v")


def test_detection_loss_refuses_misuse(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    with lordfast.collect_gates(lord_unet) as gates:
        pass
    with pytest.raises(ValueError, match="no layer that counts, out of 0"):
        lordfast.detection_loss(gates, LABELS)
    with lordfast.collect_gates(lord_unet) as gates:
        tiny.run(lord_unet)
    with pytest.raises(ValueError, match=r"layer \S+attn1.to_q have shape \(2, \d+\), expected \(3, ...\)"):
        lordfast.detection_loss(gates, torch.zeros(3))
    with pytest.raises(ValueError, match=r"labels must have shape \(B,\)"):
        lordfast.detection_loss(gates, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="labels must lie in"):
        lordfast.detection_loss(gates, torch.tensor([0, 2]))
    with pytest.raises(TypeError, match="labels must be a tensor"):
        lordfast.detection_loss(gates, [0, 1])  # type: ignore[arg-type]
    only_text = {name: logit for name, logit in gates.items() if name.endswith("attn2.to_k")}
    with pytest.raises(ValueError, match="no layer that counts, out of 4"):
        lordfast.detection_loss(only_text, LABELS)
    lordfast.remove_lord(lord_unet)
    with pytest.raises(ValueError, match="no LoRD layers"), lordfast.collect_gates(lord_unet):
        pass
