"""Sampling: what diffusers' own pipeline would draw, picture by picture, however many are drawn at once."""

import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from lordfast.diffusion import LatentDiffusion, load_model, sampling
from lordfast.diffusion.random_model import random_model
from lordfast.diffusion.sampling import generate
from lordfast.diffusion.stable_diffusion import StableDiffusion

PROMPTS = ["a photo of a person", "a landscape", "a photo of a smiling person"]


@pytest.mark.parametrize("sampler", StableDiffusion.samplers)
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_images_are_diffusers_own(sd15_folder: Path, sampler: str, guidance: float) -> None:
    scheduler = getattr(diffusers, StableDiffusion.samplers[sampler]).from_pretrained(
        sd15_folder, subfolder="scheduler"
    )
    with warnings.catch_warnings():
        # The pipeline turns clip_sample off, and says so.
        warnings.simplefilter("ignore", FutureWarning)
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            sd15_folder, scheduler=scheduler, safety_checker=None
        )
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        PROMPTS,
        negative_prompt=["blurry"] * 3,
        num_inference_steps=4,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(11 + i) for i in range(3)],
        output_type="np",
    ).images
    model = load_model(sd15_folder, device="cpu")
    found = generate(
        model, PROMPTS, seed=11, steps=4, guidance=guidance, sampler=sampler, negative_prompt="blurry", batch_size=3
    )
    difference = np.abs(np.stack(found).astype(int) - np.rint(expected * 255).astype(int))
    # Both round the same numbers, brought to [0, 255] in two ways.
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    assert np.stack(found).std() > 1, "a flat picture would agree with anything"


def test_sampling_warns_of_no_outdated_config(sd15_folder: Path) -> None:
    model = load_model(sd15_folder, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        generate(model, ["a photo"], steps=1)


def test_image_i_does_not_depend_on_the_others(demo_model: LatentDiffusion) -> None:
    drawn = {size: generate(demo_model, PROMPTS, seed=5, steps=6, batch_size=size) for size in (1, 2, 3)}
    drawn[0] = [generate(demo_model, [prompt], seed=5 + i, steps=6)[0] for i, prompt in enumerate(PROMPTS)]
    for images in drawn.values():
        for image, reference in zip(images, drawn[3], strict=True):
            difference = np.abs(image.astype(int) - reference.astype(int))
            # Kernels round differently with the batch size; measured: one grey level in at most 0.04 % of the values.
            assert difference.max() <= 1 and (difference > 0).mean() < 0.005
    assert all((a == b).all() for a, b in zip(drawn[0], drawn[1], strict=True)), "equal batches, equal bits"
    other = generate(demo_model, PROMPTS, seed=6, steps=6, batch_size=3)
    assert np.abs(other[0].astype(int) - drawn[3][0].astype(int)).mean() > 5, "the seed does nothing"


def test_prompt_and_guidance_matter(demo_model: LatentDiffusion) -> None:
    def draw(prompt: str, **options: object) -> np.ndarray:
        return generate(demo_model, [prompt], seed=1, steps=8, **options)[0].astype(int)  # type: ignore[arg-type]

    face = draw("a photo of a person")
    assert np.abs(face - draw("a photo of a landscape")).mean() > 5
    assert np.abs(face - draw("a photo of a person", guidance=1.0)).mean() > 2
    assert np.abs(face - draw("a photo of a person", negative_prompt="a photo of a landscape")).mean() > 0.5


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_draws_pictures(dtype: str) -> None:
    (image,) = generate(load_model("demo", device="cpu", dtype=dtype), PROMPTS[:1], steps=4)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and image.std() > 10


def test_another_resolution(demo_model: LatentDiffusion) -> None:
    images = generate(demo_model, PROMPTS, steps=1, resolution=32, batch_size=2)
    assert [image.shape for image in images] == [(32, 32, 3)] * 3
    assert not np.array_equal(images[0], images[1])
    with pytest.raises(ValueError, match="resolution: expected a positive multiple of 16"):
        generate(demo_model, PROMPTS, steps=1, resolution=40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sampler": "ddpm"},
            r"sampler: expected one of ddim, dpm\+\+, euler, euler-a for demo, a StableDiffusion model, got 'ddpm'",
        ),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"resolution": 50}, "resolution: expected a positive multiple of 16 for demo, got 50"),
    ],
)
def test_bad_requests(demo_model: LatentDiffusion, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(demo_model, PROMPTS[:1], **options)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "euler", "euler-a"])
def test_the_schedule_stays_on_the_host(demo_model: Any, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = type(demo_model.pipeline(sampler).scheduler)
    asked: list[str] = []
    make = scheduler.set_timesteps

    def spy(self: Any, *args: Any, device: Any = None, **kwargs: Any) -> None:
        asked.append(str(device))
        make(self, *args, device=device, **kwargs)

    monkeypatch.setattr(scheduler, "set_timesteps", spy)
    # As if the model were on a device: pipelines take it from their modules, and ask for the schedule there.
    monkeypatch.setattr(type(demo_model.pipeline(sampler)), "_execution_device", property(lambda self: "cpu:0"))
    generate(demo_model, ["a face"], steps=2, sampler=sampler)
    assert asked == ["cpu"]
    # Nothing stays behind.
    assert not demo_model.unet._forward_pre_hooks


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_the_denoiser_gets_the_timestep_where_it_computes(family: str) -> None:
    model = random_model(f"{family}-narrow", device="cpu")
    seen: list[tuple[str, str]] = []

    def watch(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = args[0] if args else kwargs["hidden_states"]
        time = args[1] if len(args) > 1 else kwargs["timestep"]
        seen.append((sample.device.type, time.device.type))

    def to_meta(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # As if the latents were on a device that is not the schedule's.
        if args:
            return (args[0].to("meta"), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"].to("meta")}

    model.unet.register_forward_pre_hook(to_meta, with_kwargs=True)
    real = sampling._timestep_to_device

    def checked(*call: Any) -> Any:
        out = real(*call)
        watch(call[0], *(out or call[1:]))
        raise StopIteration

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(sampling, "_timestep_to_device", checked)
        generate(model, ["a face"], steps=1, guidance=1.0)
    assert seen == [("meta", "meta")]
