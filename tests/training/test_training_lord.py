"""A LoRD under Stage 2 and under sampling, with the lambda that was asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lordfast
from lordfast.adapter.control import lord_layers
from lordfast.training import generate as generate_module
from lordfast.training import stage2 as stage2_module
from lordfast.training.generate import GenerateConfig, run_generate
from lordfast.training.lord import LordOptions, parse_lambda
from lordfast.training.stage2 import run_stage2


def _lambdas(model: Any) -> set[float | None]:
    return {layer.lord_lambda for layer in lord_layers(model.unet).values()}


@pytest.mark.parametrize("asked, expected", [("gate", None), ("0", 0.0), ("0.5", 0.5), ("1", 1.0)])
def test_lambda_is_the_gates_or_a_number(asked: str, expected: float | None) -> None:
    assert parse_lambda(LordOptions(lord=Path("lord"), lord_lambda=asked)) == expected


@pytest.mark.parametrize(
    "options, message",
    [
        (LordOptions(lord=Path("lord"), lord_lambda="open"), "lord_lambda: expected gate, or a number .*, got 'open'"),
        (LordOptions(lord=Path("lord"), lord_lambda="1.1"), "got '1.1'"),
        (LordOptions(lord=Path("lord"), lord_lambda="nan"), "got 'nan'"),
        (LordOptions(lord_lambda="0"), "lord_lambda: 0 was given without lord"),
    ],
)
def test_other_lambdas_are_refused(options: LordOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_lambda(options)


def test_stage2_trains_and_generate_draws_with_it(
    stage2: Callable[..., Any], lord_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work: list[tuple[str, set[float | None]]] = []
    train, draw = stage2_module.train, generate_module.draw_missing

    def watched_train(objective: Any, *args: Any, **kwargs: Any) -> Any:
        at_work.append(("stage2", _lambdas(objective)))
        return train(objective, *args, **kwargs)

    def watched_draw(model: Any, *args: Any, **kwargs: Any) -> None:
        at_work.append(("generate", _lambdas(model)))
        draw(model, *args, **kwargs)

    monkeypatch.setattr(stage2_module, "train", watched_train)
    monkeypatch.setattr(generate_module, "draw_missing", watched_draw)
    assert run_stage2(stage2(lord=lord_folder, lord_lambda="0.25", steps=1))["steps"] == 1
    run_generate(
        GenerateConfig(
            out=tmp_path / "images",
            model="demo",
            prompt="a face",
            lord=lord_folder,
            lora=tmp_path / "stage2",
            lord_lambda="1",
            n=1,
            steps=1,
            device="cpu",
        )
    )
    assert at_work == [("stage2", {0.25}), ("generate", {1.0})]


def test_nothing_is_written_for_a_lambda_without_a_lord(stage2: Callable[..., Any], tmp_path: Path) -> None:
    drawing = GenerateConfig(out=tmp_path / "images", model="demo", prompt="a face", lord_lambda="1")
    for run, config in ((run_stage2, stage2(lord_lambda="1")), (run_generate, drawing)):
        with pytest.raises(ValueError, match="lord_lambda: 1 was given without lord"):
            run(config)
        assert not config.out.exists()


def test_a_lord_that_is_overridden_stays_frozen(lord_folder: Path, demo_model: Any) -> None:
    lordfast.load_lord(demo_model.unet, lord_folder)
    lordfast.override_lambda(demo_model.unet, 1)
    assert not any(p.requires_grad for layer in lord_layers(demo_model.unet).values() for p in layer.parameters())
