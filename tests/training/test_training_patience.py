"""Several processes: how long they wait for each other, and which commands refuse them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lordfast.cli.main import main
from lordfast.training.processes import PATIENCE, make_accelerator


def test_a_process_waits_long_for_the_others(processes: Any) -> None:
    def work() -> None:
        make_accelerator("fp32", torch.device("cpu"))
        group = torch.distributed.distributed_c10d._get_default_group()
        print(group._get_backend(torch.device("cpu")).options._timeout)

    started = processes(work)
    assert started.wait() == [0, 0], started.output(0)
    assert str(PATIENCE) in started.output(0) and PATIENCE.total_seconds() >= 12 * 3600


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--prompt", "a dog"],
        ["purify", "jpeg", "--images"],
    ],
)
def test_commands_of_one_process_refuse_to_be_one_of_two(
    words: list[str], faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = [str(faces)] if words[-1] == "--images" else []
    model = [] if words[0] == "purify" else ["--model", "demo"]
    assert main([*words, *given, *model, "--out", str(tmp_path / "run")]) == 2
    assert f"lordfast {words[0]}" in (said := capsys.readouterr().err) and "runs in one process, got 2" in said
    assert not (tmp_path / "run").exists()
