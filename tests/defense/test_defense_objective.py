"""The objective of Stage 1 against its formula, term by term."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lordfast.adapter import LordConfig, collect_gates, sees_image
from lordfast.defense.objective import DefenseObjective, PairedBatches
from lordfast.diffusion import TensorCache
from lordfast.training.examples import LatentStore, TextStore
from lordfast.training.seeds import derived_generator


@pytest.fixture
def batches(demo_model: Any) -> PairedBatches:
    rng = np.random.default_rng(0)
    clean = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(3)]
    perturbed = [image ^ 7 for image in clean]
    cache = TensorCache()
    stores = [LatentStore.of(demo_model, images, cache) for images in (clean, perturbed)]
    return PairedBatches(*stores, TextStore(demo_model, ["a", "b c", "d"], cache), demo_model.timesteps, sample=True)


def _with_lord(model: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    model.unet.add_adapter(LordConfig(r=2, init_weights=False, **settings), adapter_name="lord")
    return model


def _draw(batches: PairedBatches, indices: list[int]) -> dict[str, Any]:
    return batches(indices, [derived_generator("slot", i) for i in indices])


@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_the_loss_is_equation_7_by_hand(demo_model: Any, batches: PairedBatches, granularity: str) -> None:
    model, batch = _with_lord(demo_model, gate_granularity=granularity), _draw(batches, [2, 0])
    # In float64: this random LoRD makes 1e-3 of the roundings by which one call for both halves differs from two.
    model.unet.double()
    model.dtype = torch.float64
    losses, logits = [], []
    with torch.no_grad():
        out = DefenseObjective(model, lambda_adv=1.7, lambda_det=0.3)(**batch)
        for name in ("clean", "perturbed"):
            with collect_gates(model.unet) as gates:
                noisy = model.add_noise(batch[name], batch["noise"], batch["timesteps"])
                prediction = model.predict(noisy, batch["timesteps"], batch["text"])
            losses.append((prediction - model.target(batch[name], batch["noise"], batch["timesteps"])).square().mean())
            logits.append(dict(gates))
    layers = [name for name in logits[0] if not name.endswith(("attn2.to_k", "attn2.to_v"))]
    assert 0 < len(layers) < len(logits[0])
    assert layers == [name for name in logits[0] if sees_image(name)]
    # BCE(clean, 0) + BCE(perturbed, 1): -log(1 - lambda) and -log(lambda).
    terms = [-F.logsigmoid(-logits[0][n]).mean() - F.logsigmoid(logits[1][n]).mean() for n in layers]
    detection = torch.stack(terms).mean()
    assert float(out["ldm_clean"]) == pytest.approx(float(losses[0]), rel=1e-6)
    assert float(out["ldm_perturbed"]) == pytest.approx(float(losses[1]), rel=1e-6)
    assert float(out["detection"]) == pytest.approx(float(detection), rel=1e-6)
    assert float(out["loss"]) == pytest.approx(float(losses[0] + 1.7 * losses[1] + 0.3 * detection), rel=1e-6)
    assert float(losses[0]) != pytest.approx(float(losses[1]), rel=1e-3)


def test_both_halves_share_noise_timestep_and_posterior_sample(batches: PairedBatches) -> None:
    batch = _draw(batches, [1, 2])
    shared = (batch["clean"] - batches.clean.mean[[1, 2]]) / batches.clean.std[[1, 2]]
    again = (batch["perturbed"] - batches.perturbed.mean[[1, 2]]) / batches.perturbed.std[[1, 2]]
    torch.testing.assert_close(shared, again, rtol=1e-3, atol=1e-3)
    assert batch["noise"].shape == batch["clean"].shape and batch["timesteps"].shape == (2,)
    assert not torch.equal(batch["noise"][0], batch["noise"][1])


def test_clean_and_perturbed_go_through_the_unet_in_one_call(demo_model: Any, batches: PairedBatches) -> None:
    model = _with_lord(demo_model)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    model.unet.register_forward_pre_hook(lambda module, args: seen.append(args))
    DefenseObjective(model, lambda_adv=2.0, lambda_det=0.1)(**_draw(batches, [0, 1]))
    ((noisy, timesteps),) = seen
    assert len(noisy) == 4 and torch.equal(timesteps[:2], timesteps[2:])


def test_the_detection_loss_reaches_the_gates_and_the_ldm_losses_both_branches(
    demo_model: Any, batches: PairedBatches
) -> None:
    model, batch = _with_lord(demo_model), _draw(batches, [0, 1])

    def gradient(lambda_adv: float, lambda_det: float) -> dict[str, float]:
        model.unet.zero_grad()
        DefenseObjective(model, lambda_adv=lambda_adv, lambda_det=lambda_det)(**batch)["loss"].backward()
        return {n: float(p.grad.norm()) for n, p in model.unet.named_parameters() if p.grad is not None}

    without, weighted = gradient(0.0, 0.0), gradient(0.0, 1e4)
    assert all(".lord_" in name for name in weighted)
    assert {name.split(".lord_")[1].split(".")[0] for name in weighted} >= {"A", "B", "B_adv"}
    gates = [name for name in weighted if "attn1.to_q" in name and ".lord_" in name and "B_adv" not in name]
    assert gates and all(weighted[name] > 2 * without[name] for name in gates)


def test_unequal_numbers_of_images_are_refused(batches: PairedBatches, demo_model: Any) -> None:
    one = LatentStore.of(demo_model, [np.zeros((64, 64, 3), np.uint8)], TensorCache())
    with pytest.raises(ValueError, match="one image for each of the 3 clean ones, got 1"):
        PairedBatches(batches.clean, one, batches.text, demo_model.timesteps)


def test_low_timesteps_count_by_alpha_bar(demo_model: Any, batches: PairedBatches) -> None:
    model, batch = _with_lord(demo_model, target_modules=["attn1.to_q"]), _draw(batches, [2, 0])
    batch["timesteps"] = torch.tensor([10, 900])

    def detection(**options: str) -> float:
        with torch.no_grad():
            return float(DefenseObjective(model, lambda_adv=0.0, lambda_det=0.1, **options)(**batch)["detection"])

    with torch.no_grad(), collect_gates(model.unet) as gates:
        twice = [torch.cat([batch[name], batch[name]]) for name in ("noise", "timesteps")]
        text = {name: torch.cat([value, value]) for name, value in batch["text"].items()}
        model.loss(torch.cat([batch["clean"], batch["perturbed"]]), *twice, text)
    alpha_bar = model.scheduler.alphas_cumprod
    weights = (alpha_bar[batch["timesteps"]] / alpha_bar.mean()).tolist()
    assert weights[0] > 1 > weights[1] > 0
    terms = []
    for logit in gates.values():
        sample = logit.mean(1)
        each = [
            -F.logsigmoid(-sample[0]),
            -F.logsigmoid(-sample[1]),
            -F.logsigmoid(sample[2]),
            -F.logsigmoid(sample[3]),
        ]
        terms.append(sum(weights[i % 2] * float(term) for i, term in enumerate(each)) / 2)
    found = detection(det_timesteps="low", det_tokens="sample")
    assert found == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    pooled = torch.stack([logit.mean(1) for logit in gates.values()]).mean(0)
    expected = (-F.logsigmoid(-pooled[:2]).sum() - F.logsigmoid(pooled[2:]).sum()) / 2
    assert detection(det_layers="pooled") == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ValueError, match="det_timesteps must be one of uniform, low, got 'high'"):
        detection(det_timesteps="high")
