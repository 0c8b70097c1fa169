"""How much the demo does of each step, and with which settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lordfast.attacks.pgd import PgdConfig
from lordfast.defense.stage1 import Stage1Config
from lordfast.evaluation.evaluate import EvaluateConfig
from lordfast.training.generate import GenerateConfig
from lordfast.training.stage2 import Stage2Config

FEATURES = "lordfast.demo.classifier:load_classifier"
EPS = "16/255"
"""At 8 grey levels the attack hardly shows in pictures of 64 pixels; 16 is what the field calls strong."""


class Scale(NamedTuple):
    """How much of everything."""

    images: int
    attack_steps: int
    others: int
    stage1_attack_steps: int
    stage1_steps: int
    stage2_steps: int
    generated: int
    sampler_steps: int
    reference: int


QUICK = Scale(
    images=6,
    attack_steps=10,
    others=16,
    stage1_attack_steps=4,
    stage1_steps=20,
    stage2_steps=30,
    generated=6,
    sampler_steps=10,
    reference=32,
)
FULL = Scale(
    images=12,
    attack_steps=40,
    others=96,
    stage1_attack_steps=10,
    stage1_steps=200,
    stage2_steps=150,
    generated=24,
    sampler_steps=20,
    reference=256,
)


def attack(out: Path, images: Path, prompt: str, scale: Scale, common: dict[str, Any]) -> PgdConfig:
    """Targeted PGD."""
    return PgdConfig(
        out=out,
        model="demo",
        images=images,
        prompt=prompt,
        eps=EPS,
        step_size="2/255",
        attack_steps=scale.attack_steps,
        targeted=True,
        **common,
    )


def stage1(out: Path, data: Path, scale: Scale, common: dict[str, Any], model: str = "demo") -> Stage1Config:
    """A LoRD from other people or places, and from what the same kind of attack makes of them."""
    return Stage1Config(
        out=out,
        model=model,
        data=data,
        eps=EPS,
        step_size="4/255",
        attack_steps=scale.stage1_attack_steps,
        targeted=True,
        steps=scale.stage1_steps,
        batch_size=4,
        lr=5e-4,
        lambda_det=1.0,
        tensorboard=False,
        **common,
    )


def stage2(out: Path, data: Path, prompt: str, lord: Path | None, scale: Scale, common: dict[str, Any]) -> Stage2Config:
    """A LoRA on a few pictures of one subject."""
    return Stage2Config(
        out=out,
        model="demo",
        instance_data=data,
        instance_prompt=prompt,
        lord=lord,
        steps=scale.stage2_steps,
        batch_size=4,
        lr=2e-3,
        tensorboard=False,
        **common,
    )


def generation(
    out: Path, prompt: str, lord: Path | None, lora: Path, scale: Scale, common: dict[str, Any]
) -> GenerateConfig:
    """New pictures of the subject."""
    return GenerateConfig(
        out=out,
        model="demo",
        prompt=prompt,
        lord=lord,
        lora=lora,
        n=scale.generated,
        steps=scale.sampler_steps,
        guidance=3.0,
        **common,
    )


def distance(out: Path, generated: Path, reference: Path, common: dict[str, Any]) -> EvaluateConfig:
    """Generated pictures against fresh clean ones of the same subject, on the attribute classifier's features."""
    return EvaluateConfig(
        out=out, model="demo", generated=generated, reference=reference, features=(FEATURES,), paired="off", **common
    )


def denoising(out: Path, generated: Path, prompt: str, common: dict[str, Any]) -> EvaluateConfig:
    """How well the model alone denoises generated pictures."""
    return EvaluateConfig(out=out, model="demo", denoising=True, reference=generated, prompt=prompt, **common)


def damage(out: Path, attacked: Path, clean: Path, common: dict[str, Any]) -> EvaluateConfig:
    """Attacked pictures against their originals."""
    return EvaluateConfig(
        out=out, model="demo", generated=attacked, reference=clean, distribution=False, paired="on", **common
    )


def detection(
    out: Path, lord: Path, clean: Path, attacked: Path, prompt: str, common: dict[str, Any]
) -> EvaluateConfig:
    """Lambda on clean and on attacked pictures."""
    return EvaluateConfig(out=out, model="demo", lord=lord, clean=clean, attacked=attacked, prompt=prompt, **common)
