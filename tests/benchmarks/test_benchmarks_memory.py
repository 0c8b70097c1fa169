"""The benchmark of memory: its tables, and where they go."""

from __future__ import annotations

import sys

import pytest

from lordfast.profiling.results import write_rows
from lordfast.training.memory.estimate import Estimator, Switches


@pytest.fixture
def bench(script):
    return script("memory")


def rows() -> list[dict[str, object]]:
    same = {"resolution": 512, "batch_size": 1}
    estimated = {**same, "model": "sdxl", "task": "stage1", "dtype": "bf16", "moving_gb": 1.0}
    return [
        {**estimated, "switches": "plain", "peak_gb": 21.66},
        {**estimated, "switches": "checkpointing", "peak_gb": 11.04},
        {**same, "model": "sd15", "task": "vae", "switches": "plain", "moving_gb": 3, "measured_gb": 4, "ratio": 0.75},
    ]


def test_both_tables_go_between_their_marks(bench, tmp_path):
    page, results = tmp_path / "memory.md", tmp_path / "memory.csv"
    write_rows(results, rows(), bench.COLUMNS)
    marks = "<!-- {0}:begin -->\nold\n<!-- {0}:end -->"
    page.write_text(f"before\n{marks.format('estimates')}\nbetween\n{marks.format('measured')}\nafter\n", "utf-8")
    bench.write_page(page, results)
    text = page.read_text("utf-8")
    assert "old" not in text and all(word in text for word in ("before\n", "\nbetween\n", "\nafter\n"))
    assert "| plain |  |  |  |  | 21.7 |  |" in text and "| checkpointing |  |  |  |  | 11.0 |  |" in text
    assert "| sd15 512 px | vae | plain | 3000 | 4000 | 0.75 |" in text
    # The estimates' table says nothing of what was measured, and the other way round.
    assert text.index("21.7") < text.index("between") < text.index("0.75")
    bench.write_page(page, results)
    assert page.read_text("utf-8") == text


def test_a_page_without_marks_is_left_alone(bench, tmp_path):
    page, results = tmp_path / "memory.md", tmp_path / "memory.csv"
    write_rows(results, rows(), bench.COLUMNS)
    page.write_text("nothing", "utf-8")
    with pytest.raises(ValueError, match="has no marks"):
        bench.write_page(page, results)
    assert page.read_text("utf-8") == "nothing"


def test_a_row_adds_up(bench):
    from lordfast.diffusion.configs import read_topology

    row = bench.estimated_row(Estimator(read_topology("demo"), 64), "attack", "plain", Switches(dtype="bf16"))
    assert row["peak_gb"] == pytest.approx(row["weights_gb"] + row["adapters_gb"] + row["moving_gb"])
    assert row["phase"] == "perturb" and set(row) <= set(bench.COLUMNS)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of resident memory are reset on Linux alone")
def test_a_step_is_really_run(bench):
    # The VAE of the demo keeps 6 MB of activations.
    assert 5e6 < bench._run("demo", "vae", False, 1) < 100e6
