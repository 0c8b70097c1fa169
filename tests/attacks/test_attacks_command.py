"""`lordfast attack ...` from the words on the command line to the files."""

import json
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from lordfast.attacks import folder as folder_module
from lordfast.cli.main import main
from lordfast.diffusion.resolve import DEMO_MODEL


@pytest.fixture
def words(faces: Path, tmp_path: Path) -> list[str]:
    options = {"model": "demo", "images": faces, "out": tmp_path / "run", "device": "cpu", "batch-size": 2}
    quick = ["--attack-steps", "2"]
    return ["attack", "pgd", *(word for name, value in options.items() for word in (f"--{name}", str(value))), *quick]


def test_it_writes_images_and_says_where(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*words, "--eps", "4/255", "--no-random-start"]) == 0
    out = capsys.readouterr().out
    assert "4 images within 4 grey levels (linf)" in out and str(tmp_path / "run") in out
    assert len(list((tmp_path / "run").glob("*.png"))) == 4
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["eps_grey_levels"] == pytest.approx(4)


def test_ctrl_c_prints_the_command_that_goes_on(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    perturb = folder_module.perturb

    def interrupted(*args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return perturb(*args)

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "perturb", interrupted)
        assert main(words) == 130
    error = capsys.readouterr().err
    assert "Stopped after 1 of 2 batches" in error
    command = next(line for line in error.splitlines() if line.strip().startswith("lordfast attack pgd")).split()
    assert main(command[1:]) == 0
    assert len(list((tmp_path / "run").glob("*.png"))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "attack: expected a name"),
        (["--model", "demo"], "attack: expected a name"),
        (["fog"], "attack: expected one of fgsm, pgd, mist,"),
    ],
)
def test_a_name_is_needed(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["attack", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_bad_input_is_an_error_line_and_no_traceback(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main([*words, "--eps", "8"]) == 2
    assert "error: eps: 8 is above 1" in capsys.readouterr().err
    assert main([*words, "--images", "/no/such/folder"]) == 2
    assert "error: images: image folder /no/such/folder does not exist" in capsys.readouterr().err


def test_help_lists_the_attacks(capsys: pytest.CaptureFixture) -> None:
    assert main(["attack", "--help"]) == 0
    assert "usage: lordfast attack NAME" in capsys.readouterr().out


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The transfers that were asked for, none of which is computed: the real matrix has tests of its own."""
    from lordfast.evaluation import transfer

    found: list[Any] = []

    def run_transfer(config: Any) -> dict[str, Any]:
        found.append(config)
        assert len(list((tmp_path / "run").glob("*.png"))) == 4, "the attack was not done yet"
        return {"warnings": [], "images": 4, "rows": [], "columns": [], "metrics": {}}

    monkeypatch.setattr(transfer, "run_transfer", run_transfer)
    monkeypatch.setattr("lordfast.evaluation.transfer.table.sections", lambda *args, **options: [])
    return found


def test_transfer_is_measured_on_its_own_model_and_others(words: list[str], tmp_path: Path, asked: list[Any]) -> None:
    more = ["--transfer-to", f"other={DEMO_MODEL}", "demo", "--transfer-prompts", "a dog", "a cat"]
    assert main([*words, *more, "--seed", "3", "--prompt", "a person"]) == 0
    (config,) = asked
    assert (config.to, config.prompts, config.seed) == (("demo", f"other={DEMO_MODEL}"), ("a dog", "a cat"), 3)
    assert config.attacked == (f"pgd={tmp_path / 'run'}",) and config.out == tmp_path / "run-transfer"
    assert str(config.originals) == words[words.index("--images") + 1] and not config.resume


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--transfer-prompts", "a dog"], "transfer-prompts: came without transfer-to"),
        (["--transfer-to"], "transfer-to: expected at least one argument"),
        (["--transfer-to", "no-such-model"], "'no-such-model' does not exist"),
    ],
)
def test_a_transfer_that_cannot_be_is_refused_before_the_attack(
    words: list[str], more: list[str], message: str, tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture
) -> None:
    assert main([*words, *more]) == 2
    assert message in capsys.readouterr().err
    (tmp_path / "run-transfer").mkdir()
    (tmp_path / "run-transfer" / "notes.txt").write_text("mine")
    assert main([*words, "--transfer-to", "demo"]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert not (tmp_path / "run").exists() and not asked


@pytest.mark.parametrize(
    ("more", "processes", "got"),
    [
        ([], "2", "2 processes"),
        (["--share", "1/2"], "1", "share 1/2"),
        (["--images", "faces-{0..3}.tar"], "1", r"the archives faces-\{0\.\.3\}\.tar"),
    ],
)
def test_transfer_is_for_a_whole_folder_and_one_process(
    words: list[str],
    more: list[str],
    processes: str,
    got: str,
    tmp_path: Path,
    asked: list[Any],
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    assert main([*words, *more, "--transfer-to", "demo"]) == 2
    assert re.search(f"transfer-to: expected an attack of a whole folder .* got {got};", capsys.readouterr().err)
    assert not (tmp_path / "run").exists() and not (tmp_path / "run-transfer").exists() and not asked


def test_the_command_that_goes_on_measures_too(
    words: list[str], asked: list[Any], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    perturb = folder_module.perturb

    def interrupted(*args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return perturb(*args)

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "perturb", interrupted)
        assert main([*words, "--transfer-to", "demo", "--transfer-prompts", "a dog in red"]) == 130
    error = capsys.readouterr().err
    command = next(line for line in error.splitlines() if line.strip().startswith("lordfast attack pgd"))
    assert not asked
    assert main(shlex.split(command)[1:]) == 0
    assert [config.prompts for config in asked] == [("a dog in red",)]
