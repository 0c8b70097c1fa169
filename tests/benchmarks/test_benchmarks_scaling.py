"""The scaling simulation: its formulas at hand-worked points, its inputs, and the tables of docs/scale.md."""

from pathlib import Path
from typing import Any

import pytest

from lordfast.profiling.results import write_rows


@pytest.fixture
def scaling(script: Any) -> Any:
    return script("scaling")


def test_ring_all_reduce(scaling: Any) -> None:
    link = scaling.Link("link", 100.0, 0.5)
    assert scaling.all_reduce_seconds(1, 1000, link) == 0
    # Each of 4 sends 6 quarters of 1000 bytes, in 6 messages.
    assert scaling.all_reduce_seconds(4, 1000, link) == pytest.approx(15 + 3)
    assert scaling.all_reduce_seconds(1000, 1000, scaling.Link("no latency", 100.0, 0.0)) == pytest.approx(19.98)
    # Each of 4 receives 3 quarters, a message in 3 hops.
    assert scaling.gather_seconds(4, 1000, 2, link) == pytest.approx(7.5 + 3)
    assert scaling.efficiency(3.0, 1.0) == 0.75


def test_what_is_sent_is_counted_in_the_model(scaling: Any) -> None:
    found = scaling.sizes("sd15-narrow", ("to_q",), 4, 16)
    # attn1 and attn2 of 16 transformers: 5 of width 32, 5 of 32, 5 and the middle one of 64; three factors, and a gate.
    assert found.trained == sum(2 * n * (3 * 4 * width + 16 * width + 16 + 16 + 1) for n, width in ((10, 32), (6, 64)))
    assert found.base > 10 * found.trained and found.blocks > 16


def test_numbers_of_a_results_file(scaling: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = ("step", "model", "variant", "batch", "median_s")
    case = {"step": "stage1", "model": "sd15-narrow", "variant": "lordfast", "batch": 10, "median_s": 0.25}
    # Nothing of these may be taken: another batch, another model, no time, another step.
    rows = [case, {**case, "batch": 1, "median_s": 7}, {**case, "model": "sdxl", "median_s": 8}]
    rows += [{**case, "variant": "red", "median_s": ""}, {**case, "step": "pgd", "median_s": 9}]
    write_rows(tmp_path / "stage1.csv", rows, columns)
    config = scaling.Config(results=tmp_path / "stage1.csv", models=("sd15-narrow",), batch_size=10)
    assert scaling.main(config) == 0
    said = capsys.readouterr().out
    assert (
        "Simulated, not measured" in said and "measured, `stage1.csv`, lordfast" in said and "| 0.25 s/step |" in said
    )
    assert "Attacks send nothing. The seconds an image are a range, not measured" in said and "| 3 s/image |" in said
    # One GPU: 1000 images, 100 epochs, 10 a step are 10 000 steps of 0.25 s.
    assert "| 1 | 10 | 10000 | 40/s, 41.7 min |" in said
    with pytest.raises(ValueError, match=r"no stage1 step of sdxl red 10; expected one of: sd15-narrow lordfast 10; "):
        scaling.main(scaling.Config(results=tmp_path / "stage1.csv", models=("sdxl",), variant="red", batch_size=10))
    with pytest.raises(ValueError, match="step_seconds: expected numbers above 0"):
        scaling.main(scaling.Config(step_seconds=(0.0,)))


def test_the_page_holds_what_the_script_gives(scaling: Any, tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "scale.md"
    copy = tmp_path / "scale.md"
    copy.write_bytes(page.read_bytes())
    assert scaling.main(scaling.Config(write=copy)) == 0
    assert copy.read_bytes() == page.read_bytes()
    copy.write_text("nothing")
    with pytest.raises(ValueError, match="has no lines"):
        scaling.main(scaling.Config(write=copy))
