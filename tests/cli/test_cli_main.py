"""The command itself: help, version, exit codes, interruption, and runs from their own config.yaml."""

import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from lordfast import __version__
from lordfast.cli.main import COMMANDS, main
from lordfast.cli.parse import parse
from lordfast.training.generate import GenerateConfig
from lordfast.training.run import RunFolder


def _stage2(out: Path, faces: Path, *more: str) -> list[str]:
    data = ["--instance-data", str(faces), "--instance-prompt", "a photo of sks person", "--model", "demo"]
    small = ["--steps", "3", "--batch-size", "1", "--device", "cpu", "--no-tensorboard"]
    return ["stage2", "--out", str(out), *data, *small, *more]


def _press_ctrl_c_at(step: int, monkeypatch: pytest.MonkeyPatch, times: int = 1) -> None:
    log = RunFolder.log

    def logged(self: RunFolder, row: dict[str, Any]) -> None:
        log(self, row)
        if row["step"] == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunFolder, "log", logged)


def test_usage_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\w", text, re.MULTILINE) for name in COMMANDS)
    assert main([]) == 2
    assert capsys.readouterr().out == text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lordfast {__version__}\n"


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stage3"]) == 2
    error = capsys.readouterr().err
    assert "no command 'stage3'" in error and "stage2" in error


ATTACKS = ["fgsm", "pgd", "mist", "photoguard", "fsmg", "aspl", "ace", "ace-plus", "feature"]
PURIFIERS = [
    "jpeg",
    "gaussian-noise",
    "blur",
    "resize",
    "tv",
    "vae-roundtrip",
    "diffpure",
    "gridpure",
    "impress",
    "noisy-upscale",
]


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        *(f"attack {name}" for name in ATTACKS),
        *(f"purify {name}" for name in PURIFIERS),
        "stage1",
        "stage2",
        "generate",
        "evaluate",
        "experiment purifiers",
        "transfer",
        "pairs inpainting",
        "pairs super-resolution",
    ],
)
def test_help_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: lordfast {command} ")
    for name in ("--out", "--seed", "--device", "--dtype", "--resume", "--overwrite", "--config FILE.yaml"):
        assert name in text, name
    # Every option's block is its name, its type and a sentence; none is a name and a default alone.
    blocks = re.split(r"\n.{1,2}(?=--[a-z])", text)[1:]
    bare = [block.split()[0] for block in blocks if not re.search(r"[a-z]{2,}[^()]*\.", block.partition(" ")[2])]
    assert blocks and bare == []


def test_help_begins_with_what_has_to_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stage2", "--help"]) == 0
    assert "Needed: --out --model --instance-data --instance-prompt.\n" in capsys.readouterr().out
    assert main(["demo", "--help"]) == 0
    assert "Needed" not in capsys.readouterr().out


def test_help_shows_what_a_preset_sets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stage1", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--preset paper" in text and "--step-size=0.0025" in text and "--target-modules to_q to_v" in text


def test_wrong_flags_end_with_2(capsys: pytest.CaptureFixture[str], tmp_path: Path, faces: Path) -> None:
    assert main(_stage2(tmp_path / "out", faces, "--learning-rate", "3")) == 2
    assert "--learning-rate" in capsys.readouterr().err
    assert main(_stage2(tmp_path / "out", faces, "--rank", "four")) == 2
    assert "--rank" in capsys.readouterr().err
    assert main(["stage2", "--model", "demo"]) == 2
    assert "--instance-data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_interrupted_command_prints_the_command_that_goes_on(
    tmp_path: Path, faces: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a run"
    with monkeypatch.context() as patch:
        _press_ctrl_c_at(1, patch)
        assert main(_stage2(out, faces)) == 130
    captured = capsys.readouterr()
    assert "Stopped after step 2 of 3. Go on with:" in captured.err and captured.out == ""
    words = shlex.split(captured.err.strip().splitlines()[-1])
    assert words[:2] == ["lordfast", "stage2"] and "--resume" in words
    assert main(words[1:]) == 0
    assert f"LoRA after 3 steps on 4 images: {out}" in capsys.readouterr().out
    assert main(_stage2(tmp_path / "straight", faces)) == 0
    for name in ("metrics.jsonl", "pytorch_lora_weights.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_a_second_ctrl_c_ends_at_once_without_a_traceback(
    tmp_path: Path, faces: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _press_ctrl_c_at(1, monkeypatch, times=2)
    assert main(_stage2(tmp_path / "run", faces)) == 130
    error = capsys.readouterr().err
    assert "Stopped at once. Go on with:" in error and "Traceback" not in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_s_own_config_runs_it_again(tmp_path: Path, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_stage2(tmp_path / "first", faces, "--lr", "1e-4", "--flip", "--target-modules", "to_q", "to_v")) == 0
    stored = ["--config", str(tmp_path / "first" / "config.yaml")]
    assert main(["stage2", *stored, "--out", str(tmp_path / "second")]) == 0
    first, second = (tmp_path / name / "pytorch_lora_weights.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert main(["stage2", *stored, "--out", str(tmp_path / "third"), "--seed", "4"]) == 0
    assert first.read_bytes() != (tmp_path / "third" / first.name).read_bytes()
    capsys.readouterr()
    assert main(["stage1", *stored]) == 2
    assert "belongs to 'lordfast stage2'" in capsys.readouterr().err


def test_stage1_goes_on_from_the_printed_command_to_the_same_files(
    tmp_path: Path, faces: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--model", "demo", "--data", str(faces), "--device", "cpu", "--no-tensorboard", "--attack-steps", "1"]
    command = ["stage1", *small, "--steps", "3", "--batch-size", "1", "--lord-alpha", "16"]
    assert main([*command, "--out", str(tmp_path / "straight")]) == 0
    with monkeypatch.context() as patch:
        _press_ctrl_c_at(1, patch)
        assert main([*command, "--out", str(tmp_path / "broken")]) == 130
    assert main(shlex.split(capsys.readouterr().err.strip().splitlines()[-1])[1:]) == 0
    for name in ("metrics.jsonl", "lord.safetensors", "lord_config.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_ctrl_c_before_the_first_step_tells_how_to_go_on(
    tmp_path: Path, faces: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lordfast.training.stage2._batches", press)
        assert main(_stage2(tmp_path / "run", faces)) == 130
    words = shlex.split(capsys.readouterr().err.strip().splitlines()[-1])
    assert words[:2] == ["lordfast", "stage2"] and words[-1] == "--resume"
    assert main(words[1:]) == 0
    # Before there is a run, there is nothing to go on with.
    with monkeypatch.context() as patch:
        patch.setattr("lordfast.training.stage2._read", press)
        assert main(_stage2(tmp_path / "none", faces)) == 130
    assert "Go on with" not in capsys.readouterr().err and not (tmp_path / "none").exists()


@pytest.mark.parametrize("spelling", [["-n", "2"], ["-n=2"], ["--n", "2"]])
def test_the_number_of_images_has_a_short_flag(spelling: list[str]) -> None:
    config = parse(GenerateConfig, "generate", ["--out", "x", "--model", "demo", "--prompt", "p", *spelling])
    assert config.n == 2


@pytest.mark.parametrize(
    ("command", "field"),
    [("attack pgd", "images"), ("purify diffpure", "images"), ("stage1", "data"), ("stage2", "instance_data")],
)
def test_results_do_not_go_into_the_data(
    command: str, field: str, faces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flag = field.replace("_", "-")
    more = ["--instance-prompt", "a photo of sks person"] if command == "stage2" else []
    before = sorted(faces.rglob("*"))
    words = [*command.split(), "--model", "demo", f"--{flag}", str(faces), "--out", str(faces / "run"), *more]
    assert main(words) == 2
    assert f"out: {faces / 'run'} lies inside the {field} {faces}" in capsys.readouterr().err
    assert sorted(faces.rglob("*")) == before


def test_commands_name_the_part_of_a_prompt_that_is_not_read(
    tmp_path: Path, faces: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long, end = "a photo of a person " * 10, "with a green hat"
    captioned = tmp_path / "captioned"
    shutil.copytree(faces, captioned)
    first, second, *others = sorted(captioned.glob("*.png"))
    for image in (first, second, *others):
        image.with_suffix(".txt").write_text("a photo")
    first.with_suffix(".txt").write_text(long + end)
    count = 2 + len(others)
    one_step = ["--attack-steps", "1", "--batch-size", "1"]
    prompt = ["--prompt", long + end]
    from_model = ["-n", "1", "--steps", "1"]
    transfer = ["--originals", str(captioned), "--attacked", f"a={captioned}", "--to", "demo", "--steps", "1"]
    commands = {
        "attack pgd": (["--images", str(captioned), *one_step], f"1 of {count} captions"),
        "stage1": (["--data", str(captioned), "--steps", "1", *one_step], f"1 of {count} captions"),
        "stage2": (
            ["--instance-data", str(faces), "--instance-prompt", long + end, "--steps", "1", "--batch-size", "1"],
            "1 of 1 prompts",
        ),
        "generate": ([*prompt, "--negative-prompt", "blurred", *from_model], "1 of 2 prompts"),
        "purify diffpure": ([*prompt, "--images", str(faces), "--steps", "1"], "1 of 1 prompts"),
        "evaluate": (
            ["--generated", str(faces), "--reference", str(faces), "--denoising", *prompt, "--no-frequency"],
            f"{count} of {count} captions",
        ),
        "transfer": (transfer, f"1 of {count} captions"),
    }
    for command, (flags, said) in commands.items():
        model = [] if command == "transfer" else ["--model", "demo"]
        out = tmp_path / command.replace(" ", "-")
        assert main([*command.split(), *model, *flags, "--out", str(out), "--device", "cpu"]) == 0, command
        err = caplog.text
        caplog.clear()
        assert f"{said} have more tokens than demo reads" in err, (command, err)
        assert re.search("the rest is not used, such as '(a |of |photo |person )+", err)
