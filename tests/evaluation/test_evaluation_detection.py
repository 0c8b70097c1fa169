"""AUROC by counting, and gates read on the noise, timesteps and texts that they should be read on."""

from itertools import product

import pytest
import torch
from torch import Tensor

import lordfast
from lordfast.data import make_faces
from lordfast.diffusion import LatentDiffusion
from lordfast.evaluation.detection import GateReadings, auroc, compare_readings, read_gates
from lordfast.pixels import to_tensor
from lordfast.training.seeds import derived_generator

ROUNDING = 1e-4  # a batch of another size rounds differently

IMAGES = [face.image for face in make_faces(3, seed=9)]


def counted(clean: Tensor, attacked: Tensor) -> float:
    wins = [1.0 if a > c else 0.5 if a == c else 0.0 for c, a in product(clean.tolist(), attacked.tolist())]
    return sum(wins) / len(wins)


@pytest.fixture
def defended(demo_model: LatentDiffusion) -> LatentDiffusion:
    """The embedded model with a LoRD whose gates say something else for every input."""
    config = lordfast.LordConfig(r=2, lord_alpha=16, target_modules=["to_q", "to_k", "to_out.0"], gate_hidden=4)
    generator = torch.Generator().manual_seed(1)
    demo_model.unet.add_adapter(config, adapter_name="lord")
    for name, parameter in demo_model.unet.named_parameters():
        if "lord_" in name:
            # Small changes of the layers, lest rounding grows on its way through them, and gates that see them clearly.
            size = 0.02 if "lord_B" in name else 0.2 if "lord_A" in name else 1.0
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * size)
    return demo_model


@pytest.mark.parametrize(
    ("clean", "attacked", "expected"),
    [
        ([-3.0, -2.0], [1.0, 5.0], 1.0),
        ([1.0, 5.0], [-3.0, -2.0], 0.0),
        ([0.0, 0.0], [0.0, 0.0, 0.0], 0.5),
        ([0.1, 0.4, 0.4], [0.4, 0.9], 5 / 6),
        # A sigmoid in single precision is 1 for all of these.
        ([30.0, 40.0], [50.0, 60.0], 1.0),
        ([-200.0], [-120.0], 1.0),
    ],
)
def test_auroc_of_a_few_scores(clean: list[float], attacked: list[float], expected: float) -> None:
    scores = torch.tensor(clean), torch.tensor(attacked)
    assert auroc(*scores) == pytest.approx(expected)
    assert counted(*scores) == pytest.approx(expected)


def test_auroc_counts_pairs_whatever_the_scale() -> None:
    generator = torch.Generator().manual_seed(3)
    clean = torch.randn(17, generator=generator).mul(40).round()
    attacked = torch.randn(23, generator=generator).mul(40).add(20).round()
    assert auroc(clean, attacked) == pytest.approx(counted(clean, attacked), abs=1e-6)


def test_auroc_refuses_what_has_no_order() -> None:
    with pytest.raises(ValueError, match="expected finite scores"):
        auroc(torch.tensor([0.0, float("nan")]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="0 clean, 1 attacked"):
        auroc(torch.tensor([]), torch.tensor([1.0]))


def readings(logits: list[list[list[float]]]) -> GateReadings:
    tensor = torch.tensor(logits, dtype=torch.float64)
    return GateReadings(["good", "blind"], [20, 600], tensor, tensor.sigmoid())


def test_readings_are_compared_pooled_per_timestep_and_per_layer() -> None:
    # (image, timestep, layer): the layer "good" tells the sets apart at 20 and the wrong way round at 600.
    clean = readings([[[-4.0, 1.0], [1.0, 0.0]], [[-2.0, 3.0], [2.0, 0.0]]])
    attacked = readings([[[4.0, 1.0], [-1.0, 0.0]], [[2.0, 3.0], [-2.0, 0.0]]])
    found = compare_readings(clean, attacked)
    assert (found["clean"], found["attacked"]) == (2, 2)
    # Means over all four numbers of an image: clean -0.5 and 0.75, attacked 1.0 and 0.75.
    assert found["auroc"] == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert [row["timestep"] for row in found["timesteps"]] == [20, 600]
    # At 20, means over the layers: clean -1.5 and 0.5, attacked 2.5 and 2.5.
    assert [row["auroc"] for row in found["timesteps"]] == [1.0, 0.0]
    by_layer = {row["layer"]: row for row in found["layers"]}
    # Means over the timesteps: clean -1.5 and 0, attacked 1.5 and 0.
    assert by_layer["good"]["auroc"] == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert by_layer["blind"]["auroc"] == 0.5
    expected = torch.tensor([-4.0, -2.0, 1.0, 2.0]).sigmoid().mean()
    assert by_layer["good"]["lambda_clean"] == pytest.approx(float(expected), abs=1e-6)
    assert found["timesteps"][1]["lambda_attacked"] == pytest.approx(
        float(torch.tensor([-1.0, -2.0, 0.0, 0.0]).sigmoid().mean()), abs=1e-6
    )
    cells = {(row["layer"], row["timestep"]): row for row in found["cells"]}
    assert len(cells) == len(found["cells"]) == 4
    # Clean against attacked: good -4, -2 and 4, 2 at 20; 1, 2 and -1, -2 at 600; blind 1, 3 and 1, 3; 0, 0 and 0, 0.
    expected_cells = {("good", 20): 1.0, ("good", 600): 0.0, ("blind", 20): 0.5, ("blind", 600): 0.5}
    assert {key: row["auroc"] for key, row in cells.items()} == expected_cells
    assert cells["good", 600]["lambda_clean"] == pytest.approx(float(torch.tensor([1.0, 2.0]).sigmoid().mean()))
    assert cells["blind", 20]["lambda_attacked"] == pytest.approx(float(torch.tensor([1.0, 3.0]).sigmoid().mean()))
    with pytest.raises(ValueError, match="same layers and timesteps"):
        compare_readings(clean, GateReadings(["good"], [20, 600], attacked.logits, attacked.lambdas))


@torch.no_grad()
def test_readings_are_the_gates_of_the_noised_image(defended: LatentDiffusion) -> None:
    examples = [("a", IMAGES[0], "a photo of a person"), ("sub/b", IMAGES[1], "a person with a hat")]
    found = read_gates(defended, examples, [5, 700], seed=3, batch_size=2)
    assert found.logits.shape == (2, 2, len(found.layers)) and found.timesteps == [5, 700]
    assert any(name.endswith("attn2.to_q") for name in found.layers)
    assert not any(name.endswith("attn2.to_k") for name in found.layers)

    for i, (key, image, caption) in enumerate(examples):
        latent = defended.encode(to_tensor([image]))
        for t, timestep in enumerate((5, 700)):
            noise = torch.randn(latent.shape[1:], generator=derived_generator(3, "gates", key, timestep))
            signal = defended.scheduler.alphas_cumprod[timestep]
            noisy = signal.sqrt() * latent + (1 - signal).sqrt() * noise
            with lordfast.collect_gates(defended.unet) as gates:
                defended.unet(noisy, torch.tensor([timestep]), **defended.embed([caption]))
            for n, name in enumerate(found.layers):
                logit = gates[name].double()
                assert float(found.logits[i, t, n]) == pytest.approx(float(logit.mean()), abs=ROUNDING)
                assert float(found.lambdas[i, t, n]) == pytest.approx(float(logit.sigmoid().mean()), abs=ROUNDING)


def test_twins_share_their_noise_and_others_do_not(defended: LatentDiffusion) -> None:
    image, text = IMAGES[0], "a face"
    one = read_gates(defended, [("a", image, text), ("b", image, text)], [200], seed=0)
    twin = read_gates(defended, [("b", image, text), ("a", image, text)], [200], seed=0, batch_size=1)
    assert torch.allclose(one.logits[0], twin.logits[1], atol=ROUNDING)
    assert (one.logits[0] - one.logits[1]).abs().max() > 20 * ROUNDING
    other = read_gates(defended, [("a", image, text)], [200], seed=1)
    assert (one.logits[0] - other.logits[0]).abs().max() > 20 * ROUNDING


@pytest.mark.parametrize("timesteps", [[], [-1], [20, 1000], [20, 20]])
def test_timesteps_out_of_range(demo_model: LatentDiffusion, timesteps: list[int]) -> None:
    with pytest.raises(ValueError, match=r"timesteps: expected different integers from 0 to 999, got \["):
        read_gates(demo_model, [("a", IMAGES[0], "")], timesteps)


def test_a_lord_that_sees_only_the_text(demo_model: LatentDiffusion) -> None:
    config = lordfast.LordConfig(r=2, target_modules=["attn2.to_k"], gate_hidden=4)
    demo_model.unet.add_adapter(config, adapter_name="lord")
    with pytest.raises(ValueError, match="only layers that read the text"):
        read_gates(demo_model, [("a", IMAGES[0], "")], [20])


def test_no_lord(demo_model: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match="no LoRD layers"):
        read_gates(demo_model, [("a", IMAGES[0], "")], [20])


def test_no_images(defended: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match="examples: expected at least one"):
        read_gates(defended, [], [20])
