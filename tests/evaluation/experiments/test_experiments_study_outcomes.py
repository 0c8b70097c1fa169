"""The arithmetic of a study's results and what its tables say, against numbers worked out by hand."""

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lordfast.evaluation.experiments.effects_table import written
from lordfast.evaluation.experiments.study.charts import curves, curves_chart, effects_chart, gate_chart
from lordfast.evaluation.experiments.study.latex import escape, to_latex
from lordfast.evaluation.experiments.study.measures import Measure, measures_of
from lordfast.evaluation.experiments.study.outcomes import effects
from lordfast.evaluation.experiments.study.tables import (
    paper_table,
    sections,
    settings_of,
    title_of,
    to_csv,
    to_markdown,
)

CLEAN = {"a": 10.0, "b": 12.0, "c": 14.0}
ATTACKED = {"a": 16.0, "b": 17.0, "c": 24.0}
METHOD = {"a": 13.0, "b": 15.0, "c": 20.0}
HALF = 4.302652729911275 / 3**0.5  # Student's 97.5 % quantile with 2 degrees of freedom, over the root of n


def test_the_gap_is_closed_by_the_ratio_of_means_whichever_way_is_better() -> None:
    found = effects(METHOD, clean=CLEAN, attacked=ATTACKED)
    # 3 + 2 + 4 of 6 + 5 + 10.
    assert found["gap_closed"] is not None and found["gap_closed"]["value"] == pytest.approx(9 / 21)
    assert found["gap_closed"]["low"] < 9 / 21 < found["gap_closed"]["high"] and found["gap_closed"]["n"] == 3
    against = found["against_lora"]
    assert against is not None and against["value"] == -3
    assert (against["low"], against["high"]) == (pytest.approx(-3 - HALF), pytest.approx(-3 + HALF))
    assert found["against_clean"] is not None and found["against_clean"]["value"] == 4
    turned = [{name: -value for name, value in values.items()} for values in (METHOD, CLEAN, ATTACKED)]
    higher = effects(turned[0], clean=turned[1], attacked=turned[2], better="higher")
    assert higher["gap_closed"] == found["gap_closed"]
    assert higher["against_lora"] is not None and higher["against_lora"]["value"] == 3
    # Read the wrong way round, the attack would have done good, and there were no gap.
    assert effects(turned[0], clean=turned[1], attacked=turned[2])["gap_closed"] is None


def test_a_half_finished_study_pairs_what_is_there() -> None:
    found = effects({"a": 13.0, "z": 1.0}, clean=CLEAN, attacked={"a": 16.0})
    assert found["gap_closed"] == {"value": 0.5, "low": None, "high": None, "n": 1}
    assert effects({}, clean=CLEAN, attacked=ATTACKED)["against_lora"] is None


def test_rows_that_others_are_compared_with_are_not_compared_with_themselves() -> None:
    assert effects(CLEAN, clean=None, attacked=None) == dict.fromkeys(("against_clean", "against_lora", "gap_closed"))
    plain = effects(ATTACKED, clean=CLEAN, attacked=ATTACKED, is_attacked=True)
    assert plain["against_clean"] is not None and plain["against_clean"]["value"] == 7
    assert plain["against_lora"] is None and plain["gap_closed"] is None


def test_a_measure_is_read_or_says_why_it_is_not_there() -> None:
    measure = Measure("k", "title", "lower", ("clip", "score", "value"))
    assert measure.read({"clip": {"score": {"value": 2}}}) == 2.0
    assert measure.read({"clip": {"score": {"unavailable": "no weights"}}}) == "no weights"
    assert measure.read({"clip": {"unavailable": "no CLIP"}}) == "no CLIP"
    assert measure.read({"clip": {}}) is None and measure.read({}) is None and measure.read({"clip": 1}) is None
    # What else an evaluation lacks is no reason here.
    twins = [measure.key for measure in measures_of(("my.nets:clip", "my.nets:dino", "a/vae"))]
    assert twins[::2][:3] == ["frechet-my.nets:clip", "frechet-my.nets:dino", "frechet-vae"]
    assert measures_of(("a/inception",))[0].title == "Frechet, inception"
    whole = {"unavailable": {"dino": "no weights"}}
    assert measure.read({**whole, "clip": {"score": {"value": 2}}}) == 2.0 and measure.read(whole) is None
    keys = [measure.key for measure in measures_of(("lordfast.demo.classifier:load_classifier", "inception"))]
    assert keys[:4] == ["frechet-classifier", "kernel-classifier", "frechet-inception", "kernel-inception"]
    assert measures_of(("inception",))[0].title == "FID" and len(set(keys)) == len(keys)


def estimate(value: float, spread: float | None = None, n: int = 3) -> dict[str, Any]:
    ends = (None, None) if spread is None else (value - spread, value + spread)
    return {"value": value, "low": ends[0], "high": ends[1], "n": n}


def row(dataset: str, method: str, value: float, share: float = 1.0, **measures: Any) -> dict[str, Any]:
    clean = share == 0
    effect = None if method == "clean-lora" else estimate(value - 10, 1)
    gap = None if clean or method == "lora" else estimate((30 - value) / 20, 0.25)
    mine = {**estimate(value, 2), "against_clean": effect, "against_lora": None, "gap_closed": gap}
    return {
        **{"dataset": dataset, "method": method, "proportion": share, "n": 3},
        **{"attack": None if clean else "pgd", "eps": None if clean else "8/255", "budget": None if clean else 0},
        "exposure": "clean" if clean else "pgd 8/255",
        "measures": {"frechet-x": mine, **measures},
    }


def results(**changes: Any) -> dict[str, Any]:
    gone = {"clip-iqa": {"value": None, "low": None, "high": None, "n": 0, "unavailable": "no weights"}}
    rows = [
        row("faces", "clean-lora", 10, 0.0, **gone),
        row("faces", "lord", 12, 0.0, **gone),
        row("faces", "lora", 30, **gone),
        row("faces", "lord", 20, **gone),
        row("a_b", "clean-lora", 10, 0.0, **gone),
        row("a_b", "lora", 1234.5, **gone),
    ]
    column = {"key": "frechet-x", "title": "Frechet, x", "better": "lower"}
    quality = {"key": "clip-iqa", "title": "CLIP-IQA", "better": "higher"}
    return {
        **{"complete": True, "cells": {"all": 2, "done": 2, "failed": 0, "blocked": 0, "left": 0}, "failed": []},
        **{"model": "demo", "recipe": "demo", "datasets": ["faces", "a_b"], "identities": [0, 1, 2], "seeds": 1},
        **{"per_dataset": 3, "replicates": 6, "columns": [column, quality], "rows": rows, "gates": []},
        **{"unavailable": ["no weights"], "seconds": {}, **changes},
    }


def test_the_papers_table() -> None:
    found = results()
    (setting,) = settings_of(found)
    section = paper_table(found, setting)
    assert section.title == "pgd, 8/255: means"
    assert section.columns == [
        "method",
        *(f"{name}: {title}" for name in ("faces", "a_b") for title in ("CLIP-IQA ↑", "Frechet, x ↓")),
    ]
    assert section.rows == [
        ["LoRA, clean images", "unavailable", "10 (8 to 12)", "unavailable", "10 (8 to 12)"],
        ["LoRA, no defense", "unavailable", "30 (28 to 32)", "unavailable", "1234 (1232 to 1236)"],
        ["LoRD", "unavailable", "20 (18 to 22)", "-", "-"],
    ]


def test_the_markdown_has_every_part() -> None:
    text = to_markdown(results())
    assert "faces, pgd 8/255: share of the gap that is closed" in text and "+0.5 (0.25 to 0.75)" in text
    assert "## faces, clean images: method - LoRA" in text and "| LoRD | 3 of 3 | +2 (1 to 3) | - |" in text
    assert "a_b, clean images" not in text and "* unavailable: no weights" in text and "Unfinished" not in text
    failed = [{"cell": "x/y", "type": "OSError", "message": "disk | full"}]
    cells = {"all": 5, "done": 2, "failed": 1, "blocked": 1, "left": 1}
    text = to_markdown(results(complete=False, failed=failed, cells=cells))
    assert text.startswith(
        "**Unfinished: 2 of 5 cells are there, 1 are still to be computed, 1 failed, 1 need a failed"
    )
    assert "* failed: x/y: OSError: disk | full" in text


def test_the_csv_has_a_line_per_row_and_measure() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(results()))))
    assert len(lines) == 12
    lord = next(
        line for line in lines if line["method"] == "lord" and line["attack"] and line["measure"] == "frechet-x"
    )
    assert (lord["mean"], lord["mean_low"], lord["mean_high"], lord["mean_n"]) == ("20", "18", "22", "3")
    assert (lord["gap_closed"], lord["gap_closed_high"], lord["against_clean"]) == ("0.5", "0.75", "10")
    assert lord["against_lora"] == "" and lord["eps"] == "8/255" and lord["proportion"] == "1.0"
    assert lines[1]["measure"] == "clip-iqa" and lines[1]["mean"] == ""


def test_the_latex_is_a_plain_tabular(tmp_path: Path) -> None:
    text = to_latex(results())
    assert r"\begin{tabular}{lcccc}" in text and r"\multicolumn{2}{c}{a\_b}" in text
    assert r"LoRA, no defense & -- & $30 \pm 2$ & -- & $1234 \pm 2$ \\" in text
    body = text.split(r"\hline" + "\n")
    assert len(body) == 4 and all(line.count("&") == 4 for line in body[2].splitlines())
    assert to_latex(results(complete=False, columns=[])) == "% UNFINISHED: not all cells of the study are there.\n"
    assert "UNFINISHED" in to_latex(results(complete=False)) and "UNFINISHED" not in text
    assert escape("50% of a_b & {c}\\") == r"50\% of a\_b \& \{c\}\textbackslash{}"
    # Every brace is closed, and no special letter is left bare outside of mathematics and comments.
    plain = re.sub(r"\$[^$]*\$|(?m:^%.*$)|\\.", "", text)
    assert plain.count("{") == plain.count("}") and not re.search(r"[_%#^~]", plain)
    if shutil.which("pdflatex"):
        (tmp_path / "t.tex").write_text(r"\documentclass{article}\begin{document}" + text + r"\end{document}")
        subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, capture_output=True)


def test_numbers_and_names_for_people() -> None:
    assert [written(value) for value in (1234.5, -0.00123456, 99.96, 999.6)] == ["1234", "-0.00123", "100", "1000"]
    assert (
        title_of("lord:soft") == "LoRD (soft)" and title_of("tv+lord:x") == "tv + LoRD (x)" and title_of("tv") == "tv"
    )


def test_curves_begin_at_clean() -> None:
    rows = [
        row("f", "clean-lora", 10, 0.0),
        row("f", "lord", 12, 0.0),
        row("f", "lora", 30),
        row("f", "lora", 22, 0.5),
        row("f", "lord", 20),
        row("other", "lora", 99),
    ]
    found = results(rows=rows, datasets=["f"], columns=results()["columns"][:1])
    lines = {
        method: [(share, entry["value"]) for share, entry in points]
        for method, points in curves(found, "f", "pgd", 0, "frechet-x").items()
    }
    assert lines == {"lora": [(0.0, 10), (0.5, 22), (1.0, 30)], "lord": [(0.0, 12), (1.0, 20)]}
    paired = curves(found, "f", "pgd", 0, "frechet-x", "against_clean")["lora"]
    assert [entry["value"] for _, entry in paired] == [0.0, 12, 20]
    panel = curves_chart(found).axes[0]
    drawn = {tuple(map(float, line.get_ydata())) for line in panel.get_lines()}
    assert (10.0, 22.0, 30.0) in drawn and (12.0, 20.0) in drawn
    bars = [segment for collection in panel.collections for segment in collection.get_segments()]
    assert sorted((segment[0][1], segment[1][1]) for segment in bars)[-1] == (28.0, 32.0)


def test_charts_show_the_effects_and_say_what_is_unfinished() -> None:
    figure = effects_chart(results(complete=False), "faces")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["pgd 8/255: LoRA, no defense", "pgd 8/255: LoRD", "clean: LoRD"]
    points = [float(line.get_xdata()[0]) for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
    assert points == [20.0, 10.0, 2.0] and "UNFINISHED" in figure.get_suptitle()


def test_the_gates_table_and_heat_map() -> None:
    measures = {"auroc": estimate(0.75, 0.1), "lambda_clean": estimate(0.2, n=1), "lambda_attacked": estimate(0.6)}
    entries = [{"layer": f"l{i}", "timestep": t, "auroc": i / 2 + t / 1000} for i in range(2) for t in (20, 200)]
    gate = {
        **{"dataset": "faces", "method": "lord:soft", "attack": "mist", "eps": "4/255", "n": 3, "measures": measures},
        **{"timesteps": [{"timestep": t, "auroc": t / 1000} for t in (20, 200)], "cells": entries},
    }
    found = results(gates=[gate], rows=[], columns=[])
    (section,) = sections(found)
    expected = ["0.75 (0.65 to 0.85)", "0.2 [n = 1]", "0.6", "0.02 at 20, 0.20 at 200"]
    assert section.rows == [["faces", "LoRD (soft)", "mist", "4/255", "3 of 3", *expected]]
    image = gate_chart(found, [gate]).axes[0].get_images()[0].get_array()
    assert image.tolist() == [[0.02, 0.2], [0.52, 0.7]]
    assert [line["measure"] for line in csv.DictReader(io.StringIO(to_csv(found)))] == list(measures)
