"""What the stages made, as one folder in diffusers' format, in half precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch


def pack(vae: Path, denoiser: Path, classifier: Path, out: Path) -> None:
    """Write the pipeline and the classifier to `out`, which appears whole or not at all.

    Args:
        vae: folder of the VAE.
        denoiser: folder with tokenizer, text_encoder, unet and scheduler.
        classifier: folder of the attribute classifier.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    half = {"torch_dtype": torch.float16}
    pipeline: Any = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(vae, **half),
        text_encoder=CLIPTextModel.from_pretrained(denoiser / "text_encoder", dtype=torch.float16),
        tokenizer=CLIPTokenizer.from_pretrained(denoiser / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(denoiser / "unet", **half),
        scheduler=DDIMScheduler.from_pretrained(denoiser / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    temporary = out.with_name(f".{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.save_pretrained(temporary, safe_serialization=True)
    # transformers loads in the dtype that is written there, diffusers in fp32: a pipeline of both would not run.
    config = temporary / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2, sort_keys=True))
    _write_vocabulary(temporary / "tokenizer")
    shutil.copytree(classifier, temporary / "classifier")
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)


def _write_vocabulary(tokenizer: Path) -> None:
    """Write vocab.json and merges.txt, which transformers before 5 reads instead of tokenizer.json."""
    model = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (tokenizer / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (tokenizer / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
