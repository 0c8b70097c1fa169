"""Surrogates: trained by Stage 2's loop and objective, restored to the bit, and asleep while images are attacked."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lordfast.attacks import surrogate as surrogate_module
from lordfast.attacks.ace import AceConfig
from lordfast.attacks.surrogate import FineTuned
from lordfast.data import list_images, load_image, make_faces
from lordfast.diffusion import LatentDiffusion, TensorCache, load_model
from lordfast.pixels import to_tensor
from lordfast.training.config import RunConfig
from lordfast.training.generate import load_adapters
from lordfast.training.stage2 import Stage2Config, run_stage2

CAPTION = "a photo of a sks person"


def config(**fields: Any) -> AceConfig:
    options = {"model": "demo", "images": Path("."), "out": Path("."), "device": "cpu", "surrogate_batch_size": 2}
    return AceConfig(**(options | fields))


def made(model: LatentDiffusion, count: int = 3, **fields: Any) -> FineTuned:
    chosen = config(**fields)
    return FineTuned(model, chosen, chosen, [CAPTION] * count, TensorCache())


@pytest.fixture
def pixels() -> list[Tensor]:
    return list(to_tensor([face.image for face in make_faces(3, seed=1)]))


def prediction(model: LatentDiffusion, surrogate: FineTuned) -> Tensor:
    noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), surrogate.precision():
        return model.predict(noisy, torch.tensor([100, 700]), surrogate.text([CAPTION] * 2))


@pytest.mark.parametrize("kind", ["lora", "unet"])
@pytest.mark.parametrize("text_encoder", [False, True])
def test_training_changes_it_and_restoring_is_exact(
    demo_model: LatentDiffusion, pixels: list[Tensor], kind: str, text_encoder: bool
) -> None:
    surrogate = made(demo_model, surrogate=kind, surrogate_text_encoder=text_encoder, surrogate_lr=1e-3)
    before, state = prediction(demo_model, surrogate), surrogate.state()
    texts = surrogate.text([CAPTION])["encoder_hidden_states"]
    surrogate.train(pixels, 2, 0)
    after = prediction(demo_model, surrogate)
    assert (after - before).abs().max() > 1e-3
    # Only a trained text encoder says something else now.
    assert torch.equal(surrogate.text([CAPTION])["encoder_hidden_states"], texts) != text_encoder
    parts = {name.partition(".")[0] for name in state}
    assert parts == ({"0", "1"} if text_encoder else {"0"})
    surrogate.restore(state)
    assert torch.equal(prediction(demo_model, surrogate), before)
    # A state is a copy: training again does not reach into it.
    kept = {name: value.clone() for name, value in state.items()}
    surrogate.train(pixels, 1, 1)
    assert all(torch.equal(state[name], value) for name, value in kept.items())


def test_it_is_what_stage_two_trains(demo_model: LatentDiffusion, faces: Path, tmp_path: Path, monkeypatch) -> None:
    """The same images, numbers and seed give the weights that ``lordfast stage2`` gives."""
    monkeypatch.setattr(surrogate_module, "derive_seed", lambda seed, *rest: seed)
    surrogate = made(demo_model, count=4, seed=5, surrogate_lr=1e-3)
    images = [load_image(record.path) for record in list_images(faces)]
    surrogate.train(list(to_tensor(images)), 3, 0)
    run_stage2(
        Stage2Config(
            model="demo",
            instance_data=faces,
            instance_prompt=CAPTION,
            out=tmp_path / "stage2",
            seed=5,
            device="cpu",
            steps=3,
            batch_size=2,
            lr=1e-3,
            tensorboard=False,
        )
    )
    other = load_model("demo", device="cpu")
    load_adapters(other, None, tmp_path / "stage2")
    noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = other.predict(noisy, torch.tensor([100, 700]), other.embed([CAPTION] * 2))
    torch.testing.assert_close(prediction(demo_model, surrogate), expected, rtol=1e-4, atol=1e-5)


def test_phases_draw_differently_and_repeatably(demo_model: LatentDiffusion, pixels: list[Tensor]) -> None:
    surrogate = made(demo_model)
    start = surrogate.state()
    found = []
    for phase in (0, 1, 0):
        surrogate.restore(start)
        surrogate.train(pixels, 1, phase)
        found.append(surrogate.state())
    assert all(torch.equal(found[0][name], found[2][name]) for name in start)
    assert any(not torch.equal(found[0][name], found[1][name]) for name in start)


@pytest.mark.parametrize("kind", ["lora", "unet"])
def test_between_phases_nothing_wants_a_gradient(
    demo_model: LatentDiffusion, pixels: list[Tensor], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    surrogate = made(demo_model, surrogate=kind)

    def wants() -> bool:
        return any(parameter.requires_grad for parameter in demo_model.unet.parameters())

    assert not wants()
    surrogate.train(pixels, 1, 0)
    assert not wants()

    def broken(*args: Any) -> None:
        assert wants()
        raise ValueError("broken")

    monkeypatch.setattr(surrogate_module, "train", broken)
    with pytest.raises(ValueError, match="broken"):
        surrogate.train(pixels, 1, 0)
    assert not wants()


def test_a_whole_unet_trains_in_fp32_under_bf16(pixels: list[Tensor]) -> None:
    model = load_model("demo", device="cpu", dtype="bf16")
    before_any = model.unet.conv_in.weight.detach().float().clone()
    surrogate = made(model, surrogate="unet", dtype="bf16", surrogate_lr=1e-6)
    first = prediction(model, surrogate)
    assert first.dtype == torch.float32 and torch.isfinite(first).all()
    surrogate.train(pixels, 1, 0)
    weight = model.unet.conv_in.weight
    # A step of 1e-6 is far below what bf16 weights of that size could show.
    assert weight.dtype == torch.float32 and (weight != before_any).float().mean() > 0.9


def test_other_shapes_are_trained_on_their_middle(demo_model: LatentDiffusion, pixels: list[Tensor]) -> None:
    surrogate = made(demo_model)
    start = surrogate.state()
    surrogate.train(pixels, 2, 0)
    expected = surrogate.state()
    surrogate.restore(start)
    border = torch.full((3, 64, 16), 0.3)
    wide = torch.cat([border, pixels[0], border], dim=2)
    surrogate.train([wide, *pixels[1:]], 2, 0)
    assert all(torch.equal(surrogate.state()[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"surrogate_rank": 0}, "surrogate_rank: expected at least 1, got 0"),
        ({"surrogate_batch_size": 0}, "surrogate_batch_size: expected at least 1"),
        ({"surrogate_lr": -1.0}, "surrogate_lr: expected at least 0, got -1"),
    ],
)
def test_bad_options(fields: dict[str, Any], message: str) -> None:
    chosen = config(**fields)
    with pytest.raises(ValueError, match=message):
        surrogate_module.training_config(chosen, RunConfig(out=Path(".")))
