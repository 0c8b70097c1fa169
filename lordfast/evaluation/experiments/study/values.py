"""Whether the commands that a study runs would take the options it hands them: asked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lordfast.defense import stage1
from lordfast.evaluation.config import EvaluateConfig, check_numbers
from lordfast.evaluation.experiments.choices import build
from lordfast.evaluation.experiments.study.config import StudyConfig
from lordfast.evaluation.experiments.study.methods import DEFAULT, Method
from lordfast.training import generate, stage2

_PATH = Path("folder")


def check_values(config: StudyConfig, methods: Sequence[Method], evaluate: Mapping[str, Any]) -> None:
    """Raise a ValueError where a step of any method, or the measuring, would refuse its options.

    What depends on the model or on data, such as names of layers, shows later.
    """
    offered = {"model": config.model, "resolution": config.resolution, "device": config.device, "dtype": config.dtype}

    def check(what: str, cls: type[Any], needed: dict[str, Any], options: Any, by: Callable[[Any], None]) -> None:
        try:
            by(build(cls, {"out": _PATH, **needed}, offered, options))
        except (ValueError, TypeError) as error:
            raise type(error)(f"{what}: {error}") from error

    for method in methods:
        _, _, variant = method.name.partition(":")
        where = f"variants: {variant}: " if variant and variant != DEFAULT else ""
        if method.stage1 is not None:
            check(f"{where}stage1", stage1.Stage1Config, {"data": _PATH}, method.stage1, stage1.check)
        # Options of the LoRD, which the plain LoRA is not given, are those of a variant with one.
        pictures = {"instance_data": _PATH, "instance_prompt": "prompt", "lord": _PATH}
        check(f"{where}stage2", stage2.Stage2Config, pictures, method.variant.stage2, stage2.check)
        prompt = {"prompt": "prompt", "lord": _PATH}
        check(f"{where}generate", generate.GenerateConfig, prompt, method.variant.generate, generate.check)
    check("evaluate", EvaluateConfig, {}, evaluate, check_numbers)
