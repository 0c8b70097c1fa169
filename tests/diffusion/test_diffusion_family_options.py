"""What models of one family may have or lack: a T5, zeros for nothing said, zero SNR, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from lordfast.diffusion import TensorCache, load_model
from lordfast.diffusion.cache import cached_text
from lordfast.diffusion.sampling import generate

PROMPTS = ["a photo of sks person", "a tree"]


@pytest.fixture
def changed(narrow_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """``changed("sdxl", "vae/config.json", scaling_factor=2)``: a copy with other settings in a JSON file."""

    def make(family: str, file: str, **settings: Any) -> Path:
        folder = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(narrow_folder(family), folder)
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return folder

    return make


@pytest.fixture
def with_t5(narrow_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """The narrow SD 3 with a T5 of one layer that knows single letters."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    folder = tmp_path / "t5"
    shutil.copytree(narrow_folder("sd3"), folder)
    letters = [(letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters]
    T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512).save_pretrained(folder / "tokenizer_3")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = T5Config(vocab_size=40, d_model=40, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        T5EncoderModel(config).save_pretrained(folder / "text_encoder_3")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder_3": ["transformers", "T5EncoderModel"], "tokenizer_3": ["transformers", "T5Tokenizer"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_t5_that_is_there_is_read(with_t5: Path, narrow_folder: Callable[[str], Path], dtype: str) -> None:
    model = load_model(with_t5, device="cpu", dtype=dtype)
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(with_t5)
    expected, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    found = model.embed(PROMPTS)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == "fp16" else {}
    torch.testing.assert_close(found["encoder_hidden_states"].float(), expected, **tolerance)
    torch.testing.assert_close(found["pooled_projections"].float(), pooled, **tolerance)
    assert expected[:, 77:].abs().max() > 0.1 and not torch.equal(expected[0, 77:], expected[1, 77:])
    feed_forward = model.text_encoder_3.encoder.block[0].layer[1].DenseReluDense  # type: ignore[attr-defined]
    assert feed_forward.wo.weight.dtype == torch.float32 and feed_forward.wi.weight.dtype == model.dtype
    without = load_model(narrow_folder("sd3"), device="cpu").embed(PROMPTS)["encoder_hidden_states"]
    assert without.shape == expected.shape and without[:, 77:].abs().max() == 0
    # diffusers reads no LoRA of it, so none is trained.
    assert list(model.lora_text_encoders) == ["text_encoder", "text_encoder_2"]


def test_a_part_of_the_t5_that_is_missing_is_named(with_t5: Path) -> None:
    shutil.rmtree(with_t5 / "text_encoder_3")
    with pytest.raises(ValueError, match="the text_encoder_3 of .* can't be loaded"):
        load_model(with_t5, device="cpu")


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_the_text_cache_knows_every_encoder_and_tokenizer(
    family: str, narrow_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load_model(narrow_folder(family), device="cpu")

    def misses() -> int:
        # As freshly loaded.
        model._fingerprints.clear()
        cache = TensorCache(tmp_path)
        found = cached_text(model, PROMPTS, cache)
        for name, value in model.embed(PROMPTS).items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
        return cache.misses

    assert [misses(), misses()] == [2, 0]
    for part in ("text_encoder", "text_encoder_2"):
        with torch.no_grad():
            next(getattr(model, part).parameters()).add_(1e-2)
        assert [misses(), misses()] == [2, 0], part
    # Other ids from the second tokenizer alone: it pads with another token.
    model.tokenizer_2.pad_token = "z"  # type: ignore[attr-defined]
    assert misses() == 2


def test_sdxl_may_take_the_empty_prompt_for_nothing_said(changed: Callable[..., Path]) -> None:
    zeros = load_model(changed("sdxl", "model_index.json", force_zeros_for_empty_prompt=True), device="cpu")
    words = load_model(changed("sdxl", "model_index.json", force_zeros_for_empty_prompt=False), device="cpu")
    assert torch.equal(words.unconditional()["text_embeds"], words.embed([""])["text_embeds"])
    pictures = [generate(model, PROMPTS[:1], steps=1, guidance=5.0)[0] for model in (zeros, words)]
    assert (pictures[0] != pictures[1]).any()


def test_zero_snr_reaches_training_and_sampling(changed: Callable[..., Path], narrow_folder: Any) -> None:
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    folder = changed("sd21", "scheduler/scheduler_config.json", **settings)
    model, last = load_model(folder, device="cpu"), torch.tensor([999])
    latents, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    assert torch.equal(model.add_noise(latents, noise, last), noise)
    torch.testing.assert_close(model.target(latents, noise, last), -latents)
    for sampler in model.samplers:
        made = model.pipeline(sampler).scheduler
        made.set_timesteps(4)
        assert made.config.rescale_betas_zero_snr and int(made.timesteps[0]) == 999, sampler
        assert made.config.prediction_type == "v_prediction"
    (picture,) = generate(model, PROMPTS[:1], steps=2)
    (plain,) = generate(load_model(narrow_folder("sd21"), device="cpu"), PROMPTS[:1], steps=2)
    assert picture.std() > 1 and (picture != plain).mean() > 0.1


@pytest.mark.parametrize(
    ("family", "file", "settings", "message"),
    [
        ("sd15", "scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ("sdxl", "scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
        ("sd3", "scheduler/scheduler_config.json", {"invert_sigmas": True}, "inverts its sigmas"),
        ("sdxl", "vae/config.json", {"latents_mean": [0.1] * 4, "latents_std": [1.0] * 4}, "by channel"),
    ],
)
def test_what_is_computed_otherwise_is_refused(
    changed: Callable[..., Path], family: str, file: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^model: .*{message}"):
        load_model(changed(family, file, **settings), device="cpu")


def test_a_t5_reads_what_the_clips_cut(with_t5: Path) -> None:
    model = load_model(with_t5, device="cpu")
    clip = model.text_lengths["text_encoder"]
    between, long = "a" * (clip + 3), "a" * 400
    assert set(model.cut_text(between)) == {"text_encoder", "text_encoder_2"}
    # A letter a token; the T5 has an end mark and no beginning, and a space before the first word.
    assert model.cut_text(long)["text_encoder_3"] == "a" * (400 - 256 + 2)
