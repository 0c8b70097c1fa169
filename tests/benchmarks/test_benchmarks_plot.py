"""Plots and the README's table from a small results file."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lordfast.profiling.results import read_rows

MARKED = "# Title\n\nbefore\n\n<!-- bench:begin -->\nold table\n<!-- bench:end -->\n\nafter\n"


def test_a_picture_for_each_operation_and_direction(script, results, tmp_path):
    plot = script("plot")
    assert plot.main(plot.Config(results=(results,), out=tmp_path / "plots")) == 0
    pictures = {path.name: path for path in (tmp_path / "plots").iterdir()}
    assert set(pictures) == {
        "cpu-avx512-1t-lord_linear-forward-h64.png",
        "cpu-avx512-1t-lord_linear-forward-and-backward-h64.png",
        "cpu-avx512-1t-pgd_step-forward.png",
    }
    for path in pictures.values():
        pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
        # Bars in the colours of eager and of lordfast, at least.
        for colour in ((0xE6, 0x9F, 0x00), (0x00, 0x72, 0xB2)):
            assert (np.abs(pixels.astype(int) - colour).max(1) < 4).sum() > 500


def test_bars_are_as_high_as_the_ratios(script, results):
    from matplotlib.figure import Figure

    plot = script("plot")
    rows = [row for row in read_rows(results) if row["median_us"]]
    some = [row for row in rows if (row["dtype"], row["direction"], row["op"]) == ("bf16", "forward", "lord_linear")]
    ax = Figure().subplots()
    plot._panel(ax, some, ["eager", "peft_lora_2r", "lordfast"])
    heights = [patch.get_height() for patch in ax.patches]
    assert heights == pytest.approx([3, 3, 1.5, 1.5, 1.25, 1.25], rel=1e-4)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["sd15\nimage\n16 8->8", "sd15\ntext\n16 4->8"]
    assert plot._ratios(some[1]) == pytest.approx((2.7, 3.0, 3.6), rel=1e-4)
    title = plot._title(some[0])
    for word in ("Some CPU", "1 thread", "2026-01-02", "H = 64", "forward"):
        assert word in title


def test_the_table_goes_between_the_markers(script, results, tmp_path):
    plot = script("plot")
    readme = tmp_path / "README.md"
    readme.write_text(MARKED)
    for _ in range(2):  # once more changes nothing
        plot.main(plot.Config(results=(results,), out=tmp_path, readme=readme))
    text = readme.read_text()
    assert text.startswith("# Title\n\nbefore\n\n<!-- bench:begin -->\n") and text.endswith(
        "<!-- bench:end -->\n\nafter\n"
    )
    assert "old table" not in text and text.count("| dtype |") == 1
    assert "| sd15 image 16 8->8 | bf16 | forward+backward | 125 | 3.00 | 1.50 | 1.25 | reference |" in text
    assert "Some CPU (cpu-avx512), 1 thread(s), torch 2.13.0, 2026-01-02, r = 4, H = 64" in text


@pytest.mark.parametrize("text", ["no markers", "<!-- bench:end --> <!-- bench:begin -->", MARKED + MARKED])
def test_a_readme_without_its_markers_stays_as_it_is(script, results, tmp_path, text):
    plot = script("plot")
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match="bench:begin"):
        plot.insert(readme, "table")
    assert readme.read_text() == text


def test_the_projects_readme_has_the_markers(script):
    plot = script("plot")
    from pathlib import Path

    text = (Path(plot.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert text.count(plot.BEGIN) == text.count(plot.END) == 1


def test_no_results_is_said(script, monkeypatch, tmp_path):
    plot = script("plot")
    monkeypatch.setattr(plot, "__file__", str(tmp_path / "plot.py"))
    with pytest.raises(ValueError, match="results: there are none"):
        plot.main(plot.Config())
