"""What each attack's loss is, written out once more by hand, and what the loop draws for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lordfast.attacks import engine
from lordfast.attacks.budget import Budget
from lordfast.attacks.engine import PgdSettings, perturb
from lordfast.attacks.photoguard import photoguard_loss
from lordfast.attacks.protocol import Inputs
from lordfast.attacks.registry import ATTACKS
from lordfast.attacks.target import target_pattern
from lordfast.data import make_faces
from lordfast.diffusion import LatentDiffusion, load_model
from lordfast.pixels import to_tensor

TIMES = [0, 1, 500, 999]


@pytest.fixture
def inputs(demo_model: LatentDiffusion) -> Inputs:
    """Four faces, a little changed, at four timesteps."""
    generator = torch.Generator().manual_seed(2)
    original = to_tensor([face.image for face in make_faces(4, seed=5)])
    pixels = (original + 0.1 * torch.randn(original.shape, generator=generator)).clamp(-1, 1)
    with torch.no_grad():
        latents = demo_model.encode(pixels)
    noise = torch.randn(latents.shape, generator=generator)
    text = demo_model.embed([f"a photo of person {i}" for i in range(4)])
    return Inputs(pixels, latents, original, noise, torch.tensor(TIMES), text)


@pytest.fixture
def target(demo_model: LatentDiffusion) -> Tensor:
    """The latents of the built-in picture."""
    with torch.no_grad():
        return demo_model.encode(to_tensor([target_pattern(64, 64)]))


def loss_of(name: str, model: LatentDiffusion, inputs: Inputs, **fields: Any) -> tuple[Tensor, int]:
    attack = ATTACKS[name]
    loss = attack.loss(attack.config(model="demo", images=Path("."), out=Path("."), **fields), model)
    with torch.no_grad():
        return loss(model, inputs), loss.direction


def alphas(model: LatentDiffusion) -> np.ndarray:
    return model.scheduler.alphas_cumprod.double().numpy()


@torch.no_grad()
def predictions(model: LatentDiffusion, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """z_t and the denoiser's prediction, image by image."""
    noisy, found = [], []
    for i, time in enumerate(TIMES):
        a = float(alphas(model)[time])
        noisy.append(a**0.5 * inputs.latents[i] + (1 - a) ** 0.5 * inputs.noise[i])
        text = inputs.text["encoder_hidden_states"][i : i + 1]
        found.append(model.unet(noisy[-1][None], torch.tensor([time]), encoder_hidden_states=text).sample[0])
    return torch.stack(noisy), torch.stack(found)


def mse(one: Tensor, other: Tensor) -> Tensor:
    return ((one - other) ** 2).flatten(1).mean(1)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.to(found), rtol=2e-4, atol=1e-5)


def test_untargeted(demo_model: LatentDiffusion, inputs: Inputs) -> None:
    _, prediction = predictions(demo_model, inputs)
    for name in ("fgsm", "pgd", "fsmg", "aspl"):
        loss, direction = loss_of(name, demo_model, inputs)
        close(loss, mse(prediction, inputs.noise))
        assert direction == 1
    loss, direction = loss_of("mist", demo_model, inputs, mode="semantic")
    close(loss, mse(prediction, inputs.noise))
    assert direction == 1


def test_pulling_the_prediction(demo_model: LatentDiffusion, inputs: Inputs, target: Tensor) -> None:
    _, prediction = predictions(demo_model, inputs)
    for name, fields in (("fgsm", {"targeted": True}), ("pgd", {"targeted": True}), ("ace", {})):
        loss, direction = loss_of(name, demo_model, inputs, **fields)
        close(loss, mse(prediction, target))
        assert direction == -1
    loss, direction = loss_of("ace-plus", demo_model, inputs)
    close(loss, mse(prediction, target) + 100 * mse(inputs.latents, target))
    assert direction == -1


def test_mist(demo_model: LatentDiffusion, inputs: Inputs, target: Tensor) -> None:
    _, prediction = predictions(demo_model, inputs)
    textural = ((inputs.latents - target) ** 2).flatten(1).sum(1)
    loss, direction = loss_of("mist", demo_model, inputs, mode="textural")
    close(loss, textural)
    assert direction == -1
    loss, direction = loss_of("mist", demo_model, inputs, mode="fused")
    close(loss, textural - 1e4 * mse(prediction, inputs.noise))
    assert direction == -1


@pytest.mark.parametrize("name", ["fsmg", "aspl"])
def test_towards_a_target_one_timestep_earlier(
    name: str, demo_model: LatentDiffusion, inputs: Inputs, target: Tensor
) -> None:
    """The posterior's mean as diffusers' DDPM scheduler computes it, in its own words."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(demo_model.scheduler.config, clip_sample=False, variance_type="fixed_small")
    noisy, prediction = predictions(demo_model, inputs)
    expected = mse(prediction, inputs.noise)
    for i, time in enumerate(TIMES):
        if time == 0:
            continue
        step = scheduler.step(prediction[i], time, noisy[i], generator=torch.Generator().manual_seed(0))
        deviation = scheduler._get_variance(time) ** 0.5 if time > 0 else 0.0
        drawn = torch.randn(prediction[i].shape, generator=torch.Generator().manual_seed(0))
        earlier = step.prev_sample - deviation * drawn
        a = float(alphas(demo_model)[time - 1])
        aim = a**0.5 * target[0] + (1 - a) ** 0.5 * inputs.noise[i]
        expected[i] -= ((earlier - aim) ** 2).mean()
    loss, direction = loss_of(name, demo_model, inputs, targeted=True)
    close(loss, expected)
    assert direction == 1


def test_photoguard(demo_model: LatentDiffusion, inputs: Inputs, target: Tensor) -> None:
    def norm(difference: Tensor) -> Tensor:
        return difference.flatten(1).norm(dim=1)

    loss, direction = loss_of("photoguard", demo_model, inputs)
    close(loss, norm(inputs.latents - target))
    assert direction == -1
    loss, direction = loss_of("photoguard", demo_model, inputs, to_zero=True)
    close(loss, norm(inputs.latents))
    assert direction == -1


def test_photoguard_through_the_sampler(demo_model: LatentDiffusion, inputs: Inputs) -> None:
    """Two steps of DDIM with guidance, by hand."""
    config = ATTACKS["photoguard"].config(
        model="demo", images=Path("."), out=Path("."), mode="diffusion", strength=0.4, sampler_steps=2, guidance=3.0
    )
    loss = photoguard_loss(config, demo_model)
    empty = demo_model.embed([""])["encoder_hidden_states"].expand(4, -1, -1)
    text = inputs.text["encoder_hidden_states"]
    a400, a200 = (float(alphas(demo_model)[time]) for time in (400, 200))

    @torch.no_grad()
    def guided(z: Tensor, time: int) -> Tensor:
        times = torch.full((4,), time)
        wanted = demo_model.unet(z, times, encoder_hidden_states=text).sample
        general = demo_model.unet(z, times, encoder_hidden_states=empty).sample
        return general + 3 * (wanted - general)

    z = a400**0.5 * inputs.latents + (1 - a400) ** 0.5 * inputs.noise
    noise = guided(z, 400)
    z = a200**0.5 * (z - (1 - a400) ** 0.5 * noise) / a400**0.5 + (1 - a200) ** 0.5 * noise
    noise = guided(z, 200)
    with torch.no_grad():
        picture = demo_model.decode((z - (1 - a200) ** 0.5 * noise) / a200**0.5)
        found = loss(demo_model, inputs)
    close(found, (picture - to_tensor([target_pattern(64, 64)])).flatten(1).norm(dim=1))


def test_features(demo_model: LatentDiffusion, inputs: Inputs) -> None:
    with torch.no_grad():
        ours, clean = (demo_model.vae.encoder(pixels) for pixels in (inputs.pixels, inputs.original))
        loss, direction = loss_of("feature", demo_model, inputs, module="vae-encoder")
        close(loss, mse(ours, clean))
        assert direction == 1
        close(
            loss_of("feature", demo_model, inputs, module="quant-conv")[0],
            mse(demo_model.vae.quant_conv(ours), demo_model.vae.quant_conv(clean)),
        )

        # One kind in the UNet, caught by replacing the modules' forward.
        caught: list[Tensor] = []
        blocks = [module for name, module in demo_model.unet.named_modules() if name.endswith(".attn2")]
        for block in blocks:

            def forward(*args: Any, inner: Any = block.forward, **options: Any) -> Tensor:
                caught.append(inner(*args, **options))
                return caught[-1]

            block.forward = forward
        found = loss_of("feature", demo_model, inputs, module="cross-attention")[0]
        assert len(caught) == 2 * len(blocks)
        caught.clear()
        for latents in (inputs.latents, demo_model.encode(inputs.original)):
            noisy = demo_model.add_noise(latents, inputs.noise, inputs.timesteps)
            demo_model.predict(noisy, inputs.timesteps, inputs.text)
        pairs = zip(caught[: len(blocks)], caught[len(blocks) :], strict=True)
        close(found, torch.stack([mse(one, other) for one, other in pairs]).mean(0))


def settings(**fields: Any) -> PgdSettings:
    return PgdSettings(**({"budget": Budget(1.0, 0.1), "steps": 5} | fields))


def test_steps_shrink_linearly_to_their_last() -> None:
    assert settings().step_size(0) == settings().step_size(4) == 0.1
    sizes = [settings(last_step=0.01).step_size(step) for step in range(5)]
    assert sizes == pytest.approx([0.1, 0.07525, 0.0505, 0.02575, 0.001])
    assert settings(last_step=0.01, steps=1).step_size(0) == 0.1


def test_the_loop_takes_steps_of_that_size(demo_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    real = engine.pgd_step

    def watch(*args: Any, **options: Any) -> Tensor:
        taken.append(options["step_size"])
        return real(*args, **options)

    monkeypatch.setattr(engine, "pgd_step", watch)
    image = make_faces(1, seed=0)[0].image
    loss = ATTACKS["photoguard"].loss(
        ATTACKS["photoguard"].config(model="demo", images=Path("."), out=Path(".")), demo_model
    )
    perturb(demo_model, [image], demo_model.embed([""]), loss, settings(steps=3, last_step=0.5))
    assert taken == pytest.approx([0.2, 0.15, 0.1]), "twice as long in [-1, 1]"


def test_timesteps_are_drawn_between_the_bounds(demo_model: LatentDiffusion) -> None:
    def drawn(**fields: Any) -> set[int]:
        generators = [torch.Generator().manual_seed(i) for i in range(40)]
        draw = engine._draw(generators, torch.Size((4, 2, 2)), demo_model, settings(draws=25, **fields))
        return set(draw.timesteps.flatten().tolist())

    few = drawn(least_timestep=600, most_timestep=604)
    assert few == {600, 601, 602, 603, 604}
    assert min(drawn(least_timestep=950)) >= 950 and max(drawn(least_timestep=950)) > 995
    everywhere = drawn()
    assert min(everywhere) < 20 and max(everywhere) > 980
    with pytest.raises(ValueError, match="most_timestep: expected at most 999"):
        drawn(most_timestep=1000)
    with pytest.raises(ValueError, match="least_timestep: expected at most 999"):
        drawn(least_timestep=1000)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_gaussian_start_has_its_deviation_in_unit_pixels(norm: str) -> None:
    original = torch.zeros(4, 3, 64, 64)
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    wide = settings(budget=Budget(1.0 if norm == "linf" else 100.0, 0.1, norm), start_std=0.1)
    start = engine.random_start(original, wide, generators)
    # 0.1 pixels are 0.2 in [-1, 1].
    assert float(start.std()) == pytest.approx(0.2, rel=0.02)
    tight = settings(budget=Budget(0.05 if norm == "linf" else 2.0, 0.1, norm), start_std=0.1)
    cut = engine.random_start(original, tight, generators)
    if norm == "linf":
        assert float(cut.abs().max()) == pytest.approx(0.1) and (cut.abs() > 0.0999).float().mean() > 0.5
    else:
        assert cut.flatten(1).norm(dim=1).tolist() == pytest.approx([4.0] * 4, rel=1e-4)


@pytest.mark.parametrize("case", [{"mode": "fused"}, {"mode": "textural"}])
def test_half_precision_survives_large_losses(case: dict[str, Any]) -> None:
    model = load_model("demo", device="cpu", dtype="fp16")
    images = [face.image for face in make_faces(3, seed=1)]
    loss = ATTACKS["mist"].loss(ATTACKS["mist"].config(model="demo", images=Path("."), out=Path("."), **case), model)
    options = PgdSettings(Budget(8 / 255, 4 / 255), steps=3, random_start=False)
    levels = perturb(model, images, model.embed([""] * 3), loss, options)
    change = np.abs(levels - np.stack(images))
    assert (change.reshape(3, -1).max(1) > 7).all()


def test_a_gradient_that_is_no_number_is_an_error(demo_model: LatentDiffusion) -> None:
    class Broken:
        direction = 1

        def __call__(self, model: LatentDiffusion, inputs: Inputs) -> Tensor:
            return inputs.latents.sum(dim=(1, 2, 3)) * float("nan")

    image = make_faces(1, seed=0)[0].image
    with pytest.raises(ValueError, match="gradient: became NaN or infinite"):
        perturb(demo_model, [image], demo_model.embed([""]), Broken(), settings(steps=1))


def test_a_vae_in_fp32_stays_there_under_autocast(demo_model: LatentDiffusion) -> None:
    pixels = to_tensor([face.image for face in make_faces(1, seed=0)])
    with torch.no_grad():
        expected = demo_model.encode(pixels)
        picture = demo_model.decode(expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(demo_model.encode(pixels), expected)
            assert torch.equal(demo_model.decode(expected), picture)
