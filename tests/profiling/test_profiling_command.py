"""`lordfast bench`: what it prints, writes and returns."""

from __future__ import annotations

import pytest

from lordfast.cli.main import main
from lordfast.ops.backends.reference.lord import lord_backward, lord_forward
from lordfast.profiling import quick
from lordfast.profiling.cases import LinearCase, linear_cases, quick_cases
from lordfast.profiling.results import read_rows

TINY = ["bench", "--device", "cpu", "--seconds", "0.001"]


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [LinearCase("sd15", 24, 20, 16, 2), LinearCase("sd15", 24, 20, 12, 2, x_grad=False)]
    monkeypatch.setattr(quick, "quick_cases", lambda batch: cases)


@pytest.mark.usefixtures("_tiny")
def test_it_prints_a_table_and_writes_the_rows(tmp_path, capsys):
    assert main([*TINY, "--dtype", "bf16", "--gate-hidden", "8", "--out", str(tmp_path / "b.csv")]) == 0
    out = capsys.readouterr().out
    for word in ("image 24 20->16", "text 24 20->12", "fwd+bwd", "LoRA 2r", "native", "b.csv"):
        assert word in out
    rows = read_rows(tmp_path / "b.csv")
    assert {row["dtype"] for row in rows} == {"bf16"} and {row["H"] for row in rows} == {"8"}
    assert {row["variant"] for row in rows} >= {"bare_linear", "eager", "peft_lora_2r", "lordfast"}
    assert len({row["case"] for row in rows}) == 2


@pytest.mark.usefixtures("_tiny")
def test_wrong_numbers_are_said_and_returned(add_backend, capsys):
    add_backend("madeup", lord_forward=lambda *a: tuple(2 * t for t in lord_forward(*a)), lord_backward=lord_backward)
    assert main(TINY) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "Not timed, its numbers are wrong" in out and "lordfast:madeup" in out


def test_help_explains_every_option(capsys):
    assert main(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: lordfast bench ")
    for name in ("--out", "--seed", "--device", "--dtype", "--threads", "--gate-hidden", "--config FILE.yaml"):
        assert name in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--r", "0"], "r is 0"),
        (["--gate-hidden", "-1"], "gate_hidden is -1"),
        (["--threads", "0"], "threads is 0"),
        (["--device", "abacus"], "'abacus'"),
        (["--seconds", "nan"], "seconds is nan"),
        (["--batch", "-2"], "batch is -2"),
    ],
)
def test_bad_input(flags, said, capsys):
    assert main(["bench", "--device", "cpu", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and said in captured.err


def test_the_cases_are_those_of_the_models():
    found = linear_cases(("sd15", "sdxl"), 4)
    shapes = {(c.tokens, c.k, c.n, c.x_grad) for c in found}
    assert shapes == {
        (4096, 320, 320, True),
        (1024, 640, 640, True),
        (256, 1280, 1280, True),
        (77, 768, 320, False),
        (77, 768, 640, False),
        (77, 768, 1280, False),
        (4096, 640, 640, True),
        (1024, 1280, 1280, True),
        (77, 2048, 640, False),
        (77, 2048, 1280, False),
    }
    assert {c.m for c in found} == {4 * c.tokens for c in found} and len(found) == 10
    assert set(quick_cases(4)) < set(found)
    with pytest.raises(ValueError, match="models: 'sd3' is unknown"):
        linear_cases(("sd3",), 1)
