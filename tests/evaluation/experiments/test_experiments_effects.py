"""The arithmetic of the table against sums done by hand, half-finished tables, and the page that holds one."""

import csv
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lordfast.data import save_png
from lordfast.evaluation.experiments.changes import Changes
from lordfast.evaluation.experiments.conditions import Condition
from lordfast.evaluation.experiments.effects import mean_of, paired_difference, recovered_share, table_rows
from lordfast.evaluation.experiments.effects_chart import chart, write_chart
from lordfast.evaluation.experiments.effects_table import to_csv, to_markdown
from lordfast.evaluation.experiments.page import BEGIN, END, check_page, fill_page
from lordfast.evaluation.intervals import student_interval

CLEAN = {"r0": 10.0, "r1": 12.0, "r2": 14.0}
ATTACKED = {"r0": 16.0, "r1": 17.0, "r2": 24.0}
PURIFIED = {"r0": 13.0, "r1": 15.0, "r2": 20.0}
T2 = 4.302652729911275  # Student's 97.5 % quantile with 2 degrees of freedom, from a table
CONDITIONS = [
    Condition("clean"),
    Condition("attacked-8-255", "8/255"),
    Condition("attacked-8-255+jpeg", "8/255", "jpeg", "attacked-8-255"),
    Condition("clean+jpeg", None, "jpeg", "clean"),
]


def test_the_student_interval_of_a_mean() -> None:
    low, high = student_interval(np.array([6.0, 5.0, 10.0]))
    half = T2 * 7**0.5 / 3**0.5
    assert (low, high) == (pytest.approx(7 - half), pytest.approx(7 + half))
    assert student_interval(np.array([6.0])) == (None, None)
    for bad in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="values"):
            student_interval(np.array(bad))


def test_differences_are_paired_within_replicates() -> None:
    worse = paired_difference(ATTACKED, CLEAN)
    assert worse is not None and worse["value"] == 7 and worse["n"] == 3
    assert worse["high"] - worse["value"] == pytest.approx(T2 * 7**0.5 / 3**0.5)
    # Unpaired, the spread of the replicates themselves would enter.
    purified = paired_difference(PURIFIED, ATTACKED)
    assert purified is not None and purified["value"] == -3
    assert purified["low"] == pytest.approx(-3 - T2 / 3**0.5) and purified["high"] == pytest.approx(-3 + T2 / 3**0.5)
    half_done = paired_difference({"r2": 20.0, "r1": 15.0, "r9": 0.0}, ATTACKED)
    assert half_done is not None and half_done["value"] == -3 and half_done["n"] == 2
    assert paired_difference({"r9": 0.0}, ATTACKED) is None and mean_of([]) is None


def test_the_recovered_share_is_a_ratio_of_means() -> None:
    found = recovered_share(CLEAN, ATTACKED, PURIFIED)
    # Gains 3, 2, 4 of losses 6, 5, 10: 9 / 21, and not the mean of 1/2, 2/5 and 2/5.
    assert found is not None and found["value"] == pytest.approx(9 / 21) and found["n"] == 3
    # An end r is where Student's interval of the mean of gain - r loss touches 0.
    for end in (found["low"], found["high"]):
        rest = np.array([3 - 6 * end, 2 - 5 * end, 4 - 10 * end])
        assert abs(rest.mean()) == pytest.approx(T2 * rest.std(ddof=1) / 3**0.5)
    assert found["low"] < 9 / 21 < found["high"]


@pytest.mark.parametrize("n", [2, 3])
def test_the_recovered_share_of_few_replicates_covers_the_true_one(n: int) -> None:
    rng, names, draws, hits = np.random.default_rng(n), [f"r{i}" for i in range(n)], 1000, 0
    for _ in range(draws):
        shared = rng.normal(0, 5, n)
        clean = shared + rng.normal(0, 0.1, n)
        attacked, purified = shared + 20 + rng.normal(0, 0.3, n), shared + 14 + rng.normal(0, 0.3, n)
        found = recovered_share(
            *({k: float(v) for k, v in zip(names, x, strict=True)} for x in (clean, attacked, purified))
        )
        assert found is not None and found["low"] is not None
        hits += found["low"] <= 6 / 20 <= found["high"]
    # Three standard deviations of a share among 1000 around 95 %.
    assert abs(hits / draws - 0.95) < 0.021


def test_a_share_leaves_0_out_where_the_paired_difference_does() -> None:
    rng, decided = np.random.default_rng(1), set()
    for _ in range(300):
        n = int(rng.integers(2, 6))
        clean, attacked, purified = (
            {f"r{i}": float(value) for i, value in enumerate(rng.normal(mean, 1, n))} for mean in (0, 30, 27)
        )
        share, difference = recovered_share(clean, attacked, purified), paired_difference(attacked, purified)
        assert share is not None and difference is not None
        if share["low"] is not None:
            signs = [(e["low"] > 0, e["high"] < 0) for e in (share, difference)]
            assert signs[0] == signs[1]
            decided.add(signs[0])
    assert {(True, False), (False, False)} <= decided


def test_a_share_of_what_may_be_nothing_has_no_bounds() -> None:
    near_zero = ATTACKED | {"r1": 11.0}  # losses 6, -1, 10
    found = recovered_share(CLEAN, near_zero, PURIFIED)
    assert found is not None and found["value"] == pytest.approx((3 - 4 + 4) / 15)
    assert found["low"] is None and found["high"] is None
    # The same where the quadratic has two roots, between which the ratios do not lie.
    certain = {name: near_zero[name] - gain for name, gain in {"r0": 9.0, "r1": 10.0, "r2": 11.0}.items()}
    found = recovered_share(CLEAN, near_zero, certain)
    assert found is not None and found["value"] == pytest.approx(30 / 15)
    assert found["low"] is None and found["high"] is None
    helped = {name: value - 1 for name, value in CLEAN.items()}
    assert recovered_share(CLEAN, helped, PURIFIED) is None
    one = recovered_share(CLEAN, ATTACKED, {"r0": 13.0})
    assert one == {"value": 0.5, "low": None, "high": None, "n": 1}
    assert recovered_share(CLEAN, ATTACKED, {}) is None


def results(*, left: int = 0, drop: str | None = None, failed: bool = False) -> dict[str, Any]:
    def cells(values: dict[str, float], name: str) -> dict[str, Any]:
        return {
            replicate: {
                "vae": {"frechet": value, "kernel": value / 10},
                "pictures": {"change": value - CLEAN[replicate]},
            }
            for replicate, value in values.items()
            if (name, replicate) != (drop, "r2")
        }

    values = {"clean": CLEAN, "attacked-8-255": ATTACKED, "attacked-8-255+jpeg": PURIFIED, "clean+jpeg": CLEAN}
    if drop == "all":
        values["attacked-8-255+jpeg"] = {}
    found = {name: cells(rows, name) for name, rows in values.items()}
    failures = [{"cell": "r2/x", "type": "OSError", "message": "disk\nfull", "traceback": "", "at": ""}]
    return {
        "complete": not (left or failed),
        "cells": {"all": 15, "done": 15 - left - failed, "failed": int(failed), "blocked": 0, "left": left},
        "failed": failures if failed else [],
        "model": "demo",
        "attack": "pgd",
        "identities": 3,
        "seeds": 1,
        "replicates": 3,
        "rows": table_rows(CONDITIONS, found, ["vae"]),
        "seconds": {"train": {"cells": 12, "mean": 1.5, "total": 18.0}},
    }


def test_each_row_has_the_estimates_that_make_sense_for_it() -> None:
    clean, attacked, purified, harmless = results()["rows"]
    assert [row["n"] for row in (clean, attacked, purified, harmless)] == [3, 3, 3, 3]

    def given(row: dict[str, Any]) -> set[str]:
        names = ("mean", "against_clean", "against_unpurified", "recovered")
        return {name for name in names if row["measures"][0][name] is not None}

    assert given(clean) == {"mean"}
    assert given(attacked) == {"mean", "against_clean"}
    assert given(purified) == {"mean", "against_clean", "against_unpurified", "recovered"}
    assert given(harmless) == {"mean", "against_clean", "against_unpurified"}
    frechet, kernel, change = purified["measures"]
    assert (frechet["distance"], kernel["distance"]) == ("frechet", "kernel")
    assert (change["features"], change["distance"], change["mean"]["value"]) == ("pictures", "change", 4)
    assert (frechet["mean"]["value"], kernel["mean"]["value"]) == (16, pytest.approx(1.6))
    assert frechet["against_clean"]["value"] == 4 and frechet["against_unpurified"]["value"] == -3


def test_a_measure_that_some_cells_lack_rests_on_the_others() -> None:
    found = {
        "clean": {"r0": {"vae": {"frechet": 1.0, "kernel": 1.0}}},
        "attacked-8-255": {
            "r0": {"vae": {"frechet": 3.0, "kernel": 2.0}, "pictures": {"change": 5.0}},
            "r1": {"vae": {"frechet": 5.0, "kernel": 2.0}},
        },
    }
    clean, attacked = table_rows(CONDITIONS[:2], found, ["vae"])
    assert clean["measures"][2]["mean"] is None
    assert attacked["measures"][2]["mean"]["value"] == 5 and attacked["measures"][2]["mean"]["n"] == 1
    assert attacked["measures"][0]["mean"]["value"] == 4


def test_the_change_of_what_is_drawn(tmp_path: Path) -> None:
    cells = {"clean": [10, 20], "other": [13, 24]}
    for name, levels in cells.items():
        for number, level in enumerate(levels):
            save_png(np.full((8, 8, 3), level, np.uint8), tmp_path / f"r0/{name}/generated/{number}.png")
    changes = Changes(tmp_path)
    assert changes.of("r0", "other") == pytest.approx(((9 + 16) / 2) ** 0.5)
    assert changes.of("r0", "clean") == 0
    # Finished cells don't change, so neither is read twice.
    shutil.rmtree(tmp_path / "r0/other")
    assert changes.of("r0", "other") == pytest.approx(12.5**0.5)
    (tmp_path / "r0/clean/generated/1.png").rename(tmp_path / "r0/clean/generated/2.png")
    save_png(np.full((8, 8, 3), 0, np.uint8), tmp_path / "r0/more/generated/0.png")
    with pytest.raises(ValueError, match="expected the same names"):
        changes.of("r0", "more")


def lines_of(markdown: str, title: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith(f"| {title} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_markdown_table() -> None:
    text = to_markdown(results())
    assert "Unfinished" not in text and text.startswith("3 replicates: 3 identities, 1 seed each; attack pgd, model ")
    frechet, kernel, change = lines_of(text, "attacked 8/255, jpeg")
    assert change[2] == "4 (-0.303 to 8.3)" and "## change of what is drawn, RMS in grey levels (lower" in text
    assert frechet == [
        "attacked 8/255, jpeg",
        "3 of 3",
        "16 (7.04 to 25)",
        "+4 (-0.303 to 8.3)",
        "-3 (-5.48 to -0.516)",
        "0.429 (0.301 to 1.62)",
    ]
    assert kernel[2] == "1.6 (0.704 to 2.5)"
    assert lines_of(text, "clean")[0] == ["clean", "3 of 3", "12 (7.03 to 17)", "-", "-", "-"]
    assert "Of 6 comparisons of a purifier with nothing" in text
    assert "An interval of a difference that includes 0 shows no effect." in text and "Student" in text
    assert "Replicates of one identity" not in text
    assert "Replicates of one identity" in to_markdown(results() | {"seeds": 2})


def test_a_half_finished_table_says_so() -> None:
    text = to_markdown(results(left=4, drop="attacked-8-255+jpeg"))
    assert text.startswith("**Unfinished: 11 of 15 cells are there, 4 are still to be computed.**")
    row = lines_of(text, "attacked 8/255, jpeg")[0]
    assert row[1] == "2 of 3" and row[4].startswith("-2.5 (") and "[n" not in "".join(row)
    # A difference rests on the replicates that have both.
    assert lines_of(to_markdown(results(left=4, drop="clean")), "attacked 8/255")[0][3].endswith("[n = 2]")
    empty = to_markdown(results(left=4, drop="all"))
    assert lines_of(empty, "attacked 8/255, jpeg")[0] == ["attacked 8/255, jpeg", "0 of 3", "-", "-", "-", "-"]
    failed = to_markdown(results(failed=True))
    assert "14 of 15 cells are there, 1 failed" in failed and "* failed: r2/x: OSError: disk full\n" in failed


def test_the_csv_has_every_number() -> None:
    text = to_csv(results(drop="all"))
    assert text.count("\r\n") == text.count("\n") == 1 + 3 * len(CONDITIONS)
    rows = list(csv.DictReader(io.StringIO(text)))
    attacked = next(row for row in rows if row["condition"] == "attacked-8-255" and row["distance"] == "frechet")
    assert (attacked["mean"], attacked["mean_n"], attacked["against_clean"]) == ("19.0", "3", "7.0")
    assert float(attacked["against_clean_low"]) == pytest.approx(7 - T2 * (7 / 3) ** 0.5)
    missing = next(row for row in rows if row["condition"] == "attacked-8-255+jpeg")
    assert missing["mean"] == missing["recovered_low"] == "" and missing["replicates"] == "3"


def test_the_chart_shows_each_mean_and_interval(tmp_path: Path) -> None:
    figure = chart(results())
    frechet, kernel, _ = figure.axes
    dots = {int(line.get_ydata()[0]): line.get_xdata()[0] for line in frechet.lines if line.get_marker() == "o"}
    assert dots == {1: 7, 2: 4, 3: 0}
    spans = [tuple(line.get_xdata()) for line in kernel.lines if line.get_marker() == "None" and line.get_alpha()]
    # Differences 0.3, 0.3 and 0.6: their standard deviation and the root of 3 cancel.
    assert spans[1] == (pytest.approx(0.4 - T2 / 10), pytest.approx(0.4 + T2 / 10))
    dashed = [line.get_xdata()[0] for line in frechet.lines if line.get_label() in ("clean", "attacked 8/255")]
    assert dashed == [0, 7]
    assert [text.get_text() for text in frechet.get_yticklabels()][2] == "attacked 8/255, jpeg"
    half = chart(results(left=4, drop="attacked-8-255+jpeg"))
    assert half.get_suptitle().startswith("UNFINISHED")
    assert half.axes[0].get_yticklabels()[2].get_text() == "attacked 8/255, jpeg (n=2)"
    write_chart(results(drop="all"), tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").size[0] > 600


def test_a_page_keeps_what_stands_around_the_table(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    start = f"# Title\r\n\r\n`{BEGIN}` and `{END}` in a line.\n"
    page.write_bytes(f"{start}{BEGIN}\nold\n{END}\n\nEnd, with `{BEGIN}` in a line.\n".encode())
    for table in ("| new |\n", "| newer |"):
        fill_page(page, table)
        assert page.read_bytes().decode() == (
            f"{start}{BEGIN}\n\n{table.strip()}\n\n{END}\n\nEnd, with `{BEGIN}` in a line.\n"
        )


@pytest.mark.parametrize("text", ["nothing", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{BEGIN}\n{END}\n"])
def test_a_page_without_its_markers(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    for call in (lambda: check_page(page), lambda: fill_page(page, "table")):
        with pytest.raises(ValueError, match=r"page: .*table:begin"):
            call()
    assert page.read_text() == text
    with pytest.raises(ValueError, match="page: .*nowhere.md does not exist"):
        check_page(tmp_path / "nowhere.md")
