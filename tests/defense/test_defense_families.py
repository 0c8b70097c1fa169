"""SD 2, SDXL and SD 3 all the way: perturb and train a LoRD, train a LoRA on top of it, draw with both."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lordfast.adapter import load_lord
from lordfast.data import list_images, load_image, make_faces, write_folder
from lordfast.defense.objective import DefenseObjective
from lordfast.defense.stage1 import Stage1Config, inject, run_stage1
from lordfast.diffusion import LatentDiffusion, load_model
from lordfast.diffusion.sampling import generate
from lordfast.pixels import to_tensor, to_uint8
from lordfast.training.generate import GenerateConfig, load_adapters, run_generate
from lordfast.training.interrupt import Interrupted
from lordfast.training.stage2 import Stage2Config, run_stage2

PROMPT = "a photo of sks person"
LORA = "pytorch_lora_weights.safetensors"
# Layers of both streams and both kinds of attention; SDXL's 560 are slow to inject, and another test does.
FIRST = "transformer_blocks.0"
LORD_TARGETS = {
    "sd21": (f"{FIRST}.attn1.to_q", f"{FIRST}.attn2.to_k"),
    "sdxl": (f"{FIRST}.attn1.to_out.0", f"{FIRST}.attn2.to_q", f"{FIRST}.attn2.to_v"),
    "sd3": ("to_q", "to_out.0", "add_k_proj", "to_add_out"),
}
LORA_TARGETS = {
    "sd21": (f"{FIRST}.attn2.to_q",),
    "sdxl": (f"{FIRST}.attn1.to_q", "transformer_blocks.1.attn2.to_v"),
    "sd3": ("to_q", "add_v_proj"),
}
PIPELINES = {
    "sd21": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
    "sd3": diffusers.StableDiffusion3Pipeline,
}


@pytest.fixture(scope="module", params=["sd21", "sdxl", "sd3"])
def root(
    request: pytest.FixtureRequest, narrow_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder named by the family with the model, faces, and finished runs of both stages."""
    root = tmp_path_factory.mktemp("families") / request.param
    shutil.copytree(narrow_folder(request.param), root / "model")
    write_folder(make_faces(2, seed=7), root / "faces")
    run_stage1(_stage1(root))
    run_stage2(_stage2(root))
    return root


def _stage1(root: Path, folder: str = "stage1", **settings: Any) -> Stage1Config:
    defaults: dict[str, Any] = {
        "out": root / folder,
        "model": str(root / "model"),
        "data": root / "faces",
        "target_modules": LORD_TARGETS[root.name],
        "steps": 4,
        "batch_size": 2,
        "attack_steps": 2,
        "lr": 2e-2,
        "device": "cpu",
        "tensorboard": False,
    }
    return Stage1Config(**(defaults | settings))


def _stage2(root: Path, folder: str = "stage2", **settings: Any) -> Stage2Config:
    defaults: dict[str, Any] = {
        "out": root / folder,
        "model": str(root / "model"),
        "instance_data": root / "stage1" / "perturbed",
        "instance_prompt": PROMPT,
        "lord": root / "stage1",
        "target_modules": LORA_TARGETS[root.name],
        "train_text_encoder": True,
        "steps": 3,
        "batch_size": 1,
        "lr": 5e-2,
        "text_encoder_lr": 5e-2,
        "device": "cpu",
        "tensorboard": False,
    }
    return Stage2Config(**(defaults | settings))


def _objective_loss(root: Path, model: LatentDiffusion) -> float:
    """Eq. 7 on the images of the run, over fixed noise and timesteps."""
    clean, perturbed = (
        to_tensor([load_image(record.path) for record in list_images(root / name)])
        for name in ("faces", "stage1/perturbed")
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        latents = model.encode(clean)
        return float(
            DefenseObjective(model, lambda_adv=2.0, lambda_det=0.1)(
                clean=latents.repeat(4, 1, 1, 1),
                perturbed=model.encode(perturbed).repeat(4, 1, 1, 1),
                noise=torch.randn(8, *latents.shape[1:], generator=generator),
                timesteps=torch.arange(60, 1000, 120),
                text={k: v.expand(8, *v.shape[1:]) for k, v in model.embed(["a photo of a person"]).items()},
            )["loss"]
        )


def _model(root: Path) -> LatentDiffusion:
    return load_model(root / "model", device="cpu")


def test_stage1_lowers_its_own_loss(root: Path) -> None:
    before, after = _model(root), _model(root)
    inject(before, _stage1(root))
    load_lord(after.unet, root / "stage1")
    losses = [_objective_loss(root, model) for model in (before, after)]
    assert losses[1] < 0.99 * losses[0], losses


def test_the_lora_draws_the_same_picture_in_plain_diffusers(root: Path) -> None:
    absent = {"text_encoder_3": None, "tokenizer_3": None} if root.name == "sd3" else {}
    pipeline = PIPELINES[root.name].from_pretrained(root / "model", **absent)
    pipeline.set_progress_bar_config(disable=True)
    if root.name != "sd3":
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.load_lora_weights(root / "stage2")
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
    latents = pipeline(PROMPT, generator=torch.Generator().manual_seed(4), **options).images
    with torch.no_grad():
        shift = pipeline.vae.config.shift_factor or 0.0
        expected = to_uint8(pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor + shift).sample)[0]
    model = _model(root)
    load_adapters(model, None, root / "stage2")
    (found,) = generate(model, [PROMPT], seed=4, steps=2, guidance=3.0)
    np.testing.assert_array_equal(found, expected)
    parts = {"sd21": {"unet", "text_encoder"}, "sdxl": {"unet", "text_encoder", "text_encoder_2"}}
    wanted = parts.get(root.name, {"transformer", "text_encoder", "text_encoder_2"})
    tensors = load_file(root / "stage2" / LORA)
    moved = {key.split(".")[0] for key, value in tensors.items() if "up." in key or "lora_B" in key if value.any()}
    assert moved == wanted


def test_generate_draws_with_both_and_goes_on_where_it_stopped(root: Path) -> None:
    def draw(folder: str, **settings: Any) -> list[np.ndarray]:
        given = {"prompt": PROMPT, "lora": root / "stage2", "n": 2, "steps": 1, "batch_size": 1, "device": "cpu"}
        run_generate(GenerateConfig(out=root / folder, model=str(root / "model"), **(given | settings)))
        return [load_image(root / folder / f"000{i}.png") for i in range(2)]

    both = draw("both", lord=root / "stage1")
    alone = draw("lora")
    assert (both[0] != both[1]).any() and (both[0] != alone[0]).any()
    (root / "both" / "0001.png").unlink()
    (root / "both" / "summary.json").unlink()
    np.testing.assert_array_equal(draw("both", lord=root / "stage1", resume=True), both)


def test_resumed_runs_end_bit_equal(root: Path, ctrl_c_at: Any) -> None:
    with ctrl_c_at(1), pytest.raises(Interrupted, match="after step 2 of 3"):
        run_stage2(_stage2(root, "again"))
    run_stage2(_stage2(root, "again", resume=True))
    assert (root / "again" / LORA).read_bytes() == (root / "stage2" / LORA).read_bytes()
    if root.name == "sd3":
        with ctrl_c_at(2), pytest.raises(Interrupted, match="after step 3 of 4"):
            run_stage1(_stage1(root, "once more"))
        run_stage1(_stage1(root, "once more", resume=True))
        one, other = (root / name / "lord.safetensors" for name in ("once more", "stage1"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("sd3", {"format": "kohya"}, "format: kohya has no names"),
        ("sdxl", {"format": "kohya", "target_modules": ("time_emb_proj",)}, "format kohya holds SDXL's layers inside"),
        (
            "sd3",
            {"target_modules": ("attn1.to_q",)},
            "target_modules: expected names of linear layers of .*'attn1.to_q'",
        ),
    ],
)
def test_what_a_family_can_not_do_is_refused_before_anything_is_written(
    family: str,
    settings: dict[str, Any],
    message: str,
    narrow_folder: Callable[[str], Path],
    faces: Path,
    tmp_path: Path,
) -> None:
    config = _stage2(tmp_path / family, model=str(narrow_folder(family)), instance_data=faces, lord=None, **settings)
    with pytest.raises(ValueError, match=message):
        run_stage2(config)
    assert not config.out.exists()


def test_a_sampler_of_another_family_is_refused_before_anything_is_written(
    narrow_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    config = GenerateConfig(out=tmp_path / "out", model=str(narrow_folder("sd3")), prompt=PROMPT, sampler="ddim")
    with pytest.raises(ValueError, match="sampler: expected one of flow-euler for .*, got 'ddim'"):
        run_generate(config)
    assert not (tmp_path / "out").exists()
