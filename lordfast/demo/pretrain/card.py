"""The model card of the embedded model, from what was measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from lordfast.files import write_atomic

_CARD = """\
# The embedded model: 64x64 procedural faces and landscapes

A latent diffusion model in diffusers format, trained on pictures that `lordfast.data` draws. It is for demonstrations
and tests: small enough to ship ({megabytes:.1f} MB in fp16), good enough to show what an attack and a defense do.
`StableDiffusionPipeline.from_pretrained` loads this folder.

| part | parameters | trained on | loss at the end | minutes |
|---|---|---|---|---|
{parts}

Made from nothing by `{command}`
on {machine}, {processes}, from {faces} drawn faces and {landscapes} landscapes, each of another person or place and
half of them mirrored. Minutes are wall time, on a machine that did other work as well.

## Captions

* `a photo of a [smiling |surprised ]person with (bald head|STYLE COLOUR hair) and SKIN skin[ and glasses][ and beard][
  and hat] on a BACKGROUND background`
* `a photo of a SEASON landscape at TIME with [mountains and ](lake|meadow)[ and (sun|moon)][ and trees]`

{words}

Skin, background and everything after `person` or `TIME` may be left out. The rare token `sks` stands before person or
landscape in a tenth of the training captions and means nothing yet. Guidance around 3 works best; other words mean
nothing to it.

## Measured

On {pictures} pictures of each kind that it was not trained on, in fp32 arithmetic (`python -m lordfast.demo.quality`):
reconstruction {faces_psnr:.2f} dB PSNR for faces, {landscapes_psnr:.2f} dB for landscapes. How often a picture drawn
from a caption ({steps} DDIM steps, guidance 3) shows what it asks for, as the classifier sees it:

| attribute | agrees | 95 % interval | chance | classifier's accuracy on drawn pictures |
|---|---|---|---|---|
{rows}

## Limits

It knows nothing of the real world: six hair colours, four skins, cartoon shapes. An eye is sometimes smeared, a sky may
have two suns or moons, neighbouring skins are mixed up, details are softer than in the drawn pictures. The classifier
judges pictures of the model it was trained beside, and shares its data. What is measured on this model says nothing
about Stable Diffusion.
"""


class _Part(NamedTuple):
    title: str
    file: str
    stage: str | None


_PARTS = (
    _Part("VAE: 64x64x3 to 16x16x4 and back", "vae/diffusion_pytorch_model.safetensors", "vae"),
    _Part("UNet, 16x16 latents, epsilon prediction", "unet/diffusion_pytorch_model.safetensors", "unet"),
    _Part("... where noise is high", "unet/diffusion_pytorch_model.safetensors", "unet-high-noise"),
    _Part("text encoder, a CLIP of 2 layers that knows the captions' words", "text_encoder/model.safetensors", None),
    _Part("`classifier/`: attributes of a picture, for metrics", "classifier/model.safetensors", "classifier"),
    _Part("`lord/`: the LoRD that `lordfast demo` uses", "lord/lord.safetensors", "lord"),
)


def write_card(path: Path, config: Any, summary: dict[str, Any]) -> None:
    """Write README.md of the model from the summary of all stages."""
    from safetensors import safe_open

    from lordfast.data.faces import BACKGROUNDS, HAIR_COLORS, HAIR_STYLES, SKINS
    from lordfast.data.landscapes import SEASONS, TIMES

    def parameters(file: str) -> str:
        with safe_open(path.parent / file, "pt") as weights:
            return f"{sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys()):,}"  # noqa: SIM118

    world = summary["processes"]
    count = {
        "vae": f"{config.vae_steps * config.vae_batch_size * world:,} images",
        "unet": f"{config.unet_steps * config.unet_batch_size * world:,} latents",
        "unet-high-noise": f"{config.high_noise_steps * config.unet_batch_size * world:,} latents more",
        "classifier": f"{config.classifier_steps * config.classifier_batch_size * world:,} images",
        "lord": f"{config.lord_pictures:,} images and their attacked twins",
    }

    def row(part: _Part) -> str:
        head = f"| {part.title} | {parameters(part.file)} |"
        if part.stage is None:
            return f"{head} with the UNet | | |"
        done = summary[part.stage]
        return f"{head} {count[part.stage]} | {done['loss']:.4f} | {done['seconds'] / 60:.0f} |"

    quality = summary["quality"]
    accuracy = summary["classifier"]["accuracy"]
    rows = [
        f"| {name.replace('_', ' ')} | {seen['agreement']:.1%} | {seen['low']:.1%} to {seen['high']:.1%} | "
        f"{seen['chance']:.1%} | {accuracy[name]:.1%} |"
        for kind in quality["agreement"].values()
        for name, seen in kind.items()
        if name != "kind"
    ]
    words = {
        "STYLE": [style for style in HAIR_STYLES if style != "bald"],
        "COLOUR": HAIR_COLORS,
        "SKIN": SKINS,
        "BACKGROUND": BACKGROUNDS,
        "SEASON": SEASONS,
        "TIME": TIMES,
    }
    text = _CARD.format(
        megabytes=quality["bytes"] / 1e6,
        parts="\n".join(map(row, _PARTS)),
        command=f"{f'torchrun --nproc-per-node {world}' if world > 1 else 'python'} -m lordfast.demo.pretrain",
        processes=f"{world} process{'es' if world > 1 else ''}",
        machine=summary["machine"],
        faces=f"{config.faces:,}",
        landscapes=f"{config.landscapes:,}",
        words="; ".join(f"{name}: {', '.join(values)}" for name, values in words.items()) + ".",
        pictures=config.quality_pictures,
        faces_psnr=quality["psnr"]["faces"],
        landscapes_psnr=quality["psnr"]["landscapes"],
        steps=25,
        rows="\n".join(rows),
    )
    write_atomic(path, text.encode())
