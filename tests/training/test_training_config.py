"""Configs through YAML, flags and presets."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lordfast.attacks.options import AttackConfig
from lordfast.cli.parse import parse
from lordfast.defense.stage1 import PRESETS as STAGE1_PRESETS
from lordfast.defense.stage1 import Stage1Config, lord_config
from lordfast.demo.story import DemoConfig
from lordfast.evaluation.config import EvaluateConfig
from lordfast.training.config import (
    RunConfig,
    changes,
    check_choices,
    differences,
    read_yaml,
    to_dict,
    to_flags,
    write_yaml,
)
from lordfast.training.generate import GenerateConfig
from lordfast.training.stage2 import PRESETS as STAGE2_PRESETS
from lordfast.training.stage2 import Stage2Config

STAGE2 = ["--out", "run", "--model", "demo", "--instance-data", "faces", "--instance-prompt", "a photo of sks person"]
STAGE1 = ["--out", "run", "--model", "demo", "--data", "faces"]


@dataclass(kw_only=True)
class _Everything(RunConfig):
    rate: float = 1.0
    tiny: float = 0.0
    names: tuple[str, ...] = ("a",)
    nothing: int | None = None
    number: int | None = None
    folder: Path | None = None
    text: str = "default"
    switch: bool = True


def test_yaml_brings_every_kind_of_value_back(tmp_path: Path) -> None:
    config = _Everything(
        out=tmp_path / "a folder",
        rate=1e-4,
        tiny=5e-324,
        names=("to_q", "to_out.0"),
        number=-3,
        folder=Path("ünï/c: d"),
        text='--starts with dashes, "quotes": and a\ttab',
        switch=False,
        seed=2**40,
    )
    path = tmp_path / "config.yaml"
    write_yaml(path, "everything", config)
    assert parse(_Everything, "everything", ["--config", str(path)]) == config
    assert yaml.safe_load(path.read_text())["rate"] == 1e-4


def test_an_empty_string_survives_yaml(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_yaml(path, "everything", _Everything(out=tmp_path, text=""))
    assert parse(_Everything, "everything", ["--config", str(path)]).text == ""


def test_floats_that_yaml_reads_as_text_are_numbers_here(tmp_path: Path) -> None:
    path = tmp_path / "by_hand.yaml"
    path.write_text("out: run\nrate: 1e-4\n")
    assert parse(_Everything, "everything", ["--config", str(path)]).rate == 1e-4


def test_resume_and_overwrite_are_not_stored(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_yaml(path, "everything", _Everything(out=tmp_path, resume=True, overwrite=True))
    stored = parse(_Everything, "everything", ["--config", str(path)])
    assert not stored.resume and not stored.overwrite


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("command: stage2\nrank: 9\nsteps: 7\nclass_prompt: a person\n")
    args = [*STAGE2, "--preset", "paper", "--config", str(path), "--steps", "3"]
    config = parse(Stage2Config, "stage2", args, STAGE2_PRESETS)
    assert (config.steps, config.rank, config.batch_size) == (3, 9, 1)
    assert config.class_prompt == "a person" and config.prior_preservation


def test_the_paper_preset_of_stage1() -> None:
    config = parse(Stage1Config, "stage1", [*STAGE1, "--preset", "paper"], STAGE1_PRESETS)
    assert (config.rank, config.lord_alpha, config.target_modules) == (4, 32, ("to_q", "to_v"))
    assert (config.lr, config.lr_schedule, config.epochs, config.batch_size) == (1e-4, "constant", 100, 16)
    assert (config.lambda_adv, config.lambda_det) == (2.0, 0.1)
    assert (config.weight_decay, config.clip_norm) == (1e-2, 1.0)
    settings = config.settings(seed=0)
    # 5e-3 and 0.05 on [-1, 1] tensors are half as much in [0, 1] pixels.
    assert (settings.steps, settings.budget.step_size, settings.budget.eps) == (2, 0.0025, 0.025)
    assert settings.budget.norm == "linf" and not settings.random_start
    assert not config.targeted
    # What the paper does not have stays off.
    assert (config.adversaries, config.perturbed, config.refresh_every) == ((), (), 0)
    assert lord_config(config).has_papers_gate and config.gate_temperature == 1
    assert (config.det_layers, config.det_tokens, config.det_timesteps) == ("mean", "token", "uniform")


def test_the_paper_preset_of_stage2() -> None:
    config = parse(Stage2Config, "stage2", [*STAGE2, "--preset", "paper"], STAGE2_PRESETS)
    assert (config.rank, config.batch_size, config.lr, config.steps) == (4, 1, 1e-4, 1000)
    assert (config.prior_preservation, config.prior_weight, config.class_images) == (True, 1.0, 100)
    assert (config.train_text_encoder, config.text_encoder_lr) == (True, 5e-5)


@pytest.mark.parametrize("cls, presets", [(Stage1Config, STAGE1_PRESETS), (Stage2Config, STAGE2_PRESETS)])
def test_presets_set_only_fields_that_exist(cls: type[Any], presets: dict[str, dict[str, Any]]) -> None:
    names = {field.name for field in dataclasses.fields(cls)}
    assert all(set(values) <= names for values in presets.values())


@pytest.mark.parametrize(
    "text, message",
    [
        ("command: stage1\nlr: 1\n", "belongs to 'lordfast stage1', not to 'lordfast stage2'"),
        ("lr: 1\nlearning_rate: 2\n", "'learning_rate'"),
        ("- a\n- b\n", "holds a list"),
        ("a: [", "no readable YAML"),
        ("", "holds a NoneType"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse(Stage2Config, "stage2", [*STAGE2, "--config", str(path)], STAGE2_PRESETS)


def test_a_missing_file_and_an_unknown_preset_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere.yaml does not exist"):
        read_yaml(tmp_path / "nowhere.yaml", "stage2")
    with pytest.raises(ValueError, match="expected one of: paper; got 'papre'"):
        parse(Stage2Config, "stage2", [*STAGE2, "--preset", "papre"], STAGE2_PRESETS)
    with pytest.raises(ValueError, match="none for this command"):
        parse(_Everything, "everything", ["--out", "x", "--preset", "paper"])


def test_flags_of_none_are_left_out_and_booleans_are_spelled_out() -> None:
    flags = to_flags({"a_b": None, "on": True, "off": False, "many": [1, 2], "one": "x y"})
    assert flags == ["--on", "--no-off", "--many", "1", "2", "--one=x y"]


def test_differences_names_fields_and_values_but_not_where_it_writes() -> None:
    before = to_dict(_Everything(out=Path("a"), rate=1e-4))
    now = to_dict(_Everything(out=Path("b"), rate=2e-4, resume=True))
    assert differences(before, now) == ["rate: 0.0001 -> 0.0002"]


def test_what_an_older_run_s_file_lacks_had_its_default() -> None:
    config = Stage1Config(out=Path("run"), model="demo", data=Path("faces"), rank=8)
    younger = ("gate_norm", "gate_temperature", "adversaries", "target_modules", "perturbed")
    stored = {name: value for name, value in to_dict(config).items() if name not in younger}
    assert changes(stored, config) == []
    config.gate_norm, config.adversaries = "layer", ("pgd", "mist")
    assert changes(stored, config) == ["adversaries: [] -> ['pgd', 'mist']", "gate_norm: 'none' -> 'layer'"]
    # A field without a default, and one that is gone, have nothing to be taken for.
    del stored["data"]
    found = changes({**stored, "gone": 3}, config)
    assert "gone: 3 -> None" in found and "data: None -> 'faces'" in found and len(found) == 4


def test_choices_are_checked_in_python_too() -> None:
    with pytest.raises(ValueError, match=r"dtype: expected one of fp32, bf16, fp16, got 'fp64'"):
        check_choices(RunConfig(out=Path("x"), dtype="fp64"))  # type: ignore[arg-type]
    config = parse(Stage2Config, "stage2", STAGE2, STAGE2_PRESETS)
    config.format = "koyha"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="format: expected one of diffusers, kohya"):
        check_choices(config)


@pytest.mark.parametrize(
    "config",
    [
        AttackConfig(out=Path("run"), model="demo", images=Path("images")),
        Stage1Config(out=Path("run"), model="demo", data=Path("faces")),
        Stage1Config(out=Path("run"), model="demo", data=Path("faces"), **STAGE1_PRESETS["paper"]),
        Stage1Config(
            out=Path("run"),
            model="demo",
            data=Path("faces"),
            adversaries=("pgd,eps=4/255", "mist"),
            perturbed=(Path("a b"), Path("c")),
        ),
        Stage2Config(out=Path("run"), model="demo", instance_data=Path("faces"), instance_prompt="sks"),
        GenerateConfig(out=Path("run"), model="demo", prompt="sks"),
        EvaluateConfig(out=Path("run"), generated=Path("a"), reference=Path("b")),
        DemoConfig(),
    ],
    ids=lambda config: type(config).__name__,
)
def test_a_config_survives_its_flags_in_value_and_type(config: RunConfig) -> None:
    # A whole number that comes back as a float is equal, and another file once it is written.
    flags = to_flags(to_dict(config))
    assert repr(to_dict(parse(type(config), "command", flags))) == repr(to_dict(config))


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_that_no_generator_takes(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed: expected a whole number .* got {seed}"):
        check_choices(RunConfig(out=Path("run"), seed=seed))
