"""The matrix from made-up cells: every number in its place, in JSON, Markdown, CSV and the heat maps."""

import csv
import io
import re
from typing import Any

import numpy as np
import pytest

from lordfast.evaluation.intervals import mean_interval
from lordfast.evaluation.transfer.chart import matrix_figure
from lordfast.evaluation.transfer.config import Column
from lordfast.evaluation.transfer.matrix import assemble, find
from lordfast.evaluation.transfer.table import decimals, sections, to_csv, to_markdown

ROWS = [
    {"name": "mist", "kind": "attack", "largest_change": 8},
    {"name": "ace", "kind": "attack", "largest_change": 4},
    {"name": "random-signs-as-mist", "kind": "random signs", "like": ["mist"], "largest_change": 8},
    {"name": "random-signs-as-ace", "kind": "random signs", "like": ["ace"], "largest_change": 4},
]
COLUMNS = [Column("sd/prompt-1", "sd", 'a "cat", | sat\non $x$ [mat]'), Column("sd/prompt-2", "sd", "a dog")]
IMAGES = ("a.png", "b.png", "c.png")


def psnr(row: int, column: int, image: int) -> float:
    # Every number different, and no difference of two rows the same for all images.
    return 10 + 7 * row + 2.5 * column + 0.37 * image * (row + 1)


def made_up() -> dict[tuple[str, str], dict[str, Any]]:
    cells = {}
    for r, row in enumerate(ROWS):
        for c, column in enumerate(COLUMNS):
            images = [
                {
                    "image": name,
                    "psnr": psnr(r, c, i),
                    "ssim": 0.5 + psnr(r, c, i) / 200,
                    "ms_ssim": 0.6 + psnr(r, c, i) / 200,
                    "ms_ssim_scales": 5,
                    "clip": 20 + psnr(r, c, i) / 10,
                    "clip_original": 25.0 + c + i,
                }
                for i, name in enumerate(IMAGES)
            ]
            fid = {"value": 100 - psnr(r, c, 0), "low": 1.0, "high": 200.0, "features": 2}
            cells[row["name"], column.key] = {"rows": images, "fid": fid}
    return cells


def built(cells: dict[tuple[str, str], dict[str, Any]] | None = None, **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"without_clip": None, "features": "vae", "resamples": 200, "seed": 4} | options
    return assemble(ROWS, COLUMNS, made_up() if cells is None else cells, **settings)


def test_every_cell_is_the_mean_over_its_own_images_with_their_interval() -> None:
    matrix = built()
    assert len(matrix["cells"]) == 8
    for r, row in enumerate(ROWS):
        for c, column in enumerate(COLUMNS):
            cell = find(matrix, row["name"], column.key)
            values = np.array([psnr(r, c, i) for i in range(3)])
            assert cell["psnr"]["value"] == pytest.approx(values.mean())
            assert (cell["psnr"]["low"], cell["psnr"]["high"]) == mean_interval(values, resamples=200, seed=4)
            assert cell["psnr"]["low"] < cell["psnr"]["value"] < cell["psnr"]["high"]
            assert cell["ssim"]["value"] == pytest.approx(0.5 + values.mean() / 200)
            assert cell["ms_ssim"]["value"] == pytest.approx(0.6 + values.mean() / 200)
            assert cell["clip"]["value"] == pytest.approx(20 + values.mean() / 10)
            assert (cell["fid"]["value"], cell["images"]) == (100 - psnr(r, c, 0), 3)
    assert [column["clip_of_originals"]["value"] for column in matrix["columns"]] == [26.0, 27.0]
    assert matrix["warnings"] == []


def test_attacks_are_compared_with_their_own_random_signs_image_by_image() -> None:
    matrix = built()
    for r, name in enumerate(("mist", "ace")):
        for c, column in enumerate(COLUMNS):
            found = find(matrix, name, column.key)["minus_random"]
            pairs = np.array([psnr(r, c, i) - psnr(r + 2, c, i) for i in range(3)])
            assert found["psnr"]["value"] == pytest.approx(pairs.mean()) and pairs.mean() < -10
            assert (found["psnr"]["low"], found["psnr"]["high"]) == pytest.approx(
                mean_interval(pairs, resamples=200, seed=4)
            )
            assert set(found) == {"psnr", "ssim", "ms_ssim", "clip"}
    assert all("minus_random" not in find(matrix, row["name"], COLUMNS[0].key) for row in ROWS[2:])


def test_without_resamples_there_are_no_intervals() -> None:
    cell = find(built(resamples=0), "mist", "sd/prompt-1")
    assert cell["psnr"]["low"] is None is cell["psnr"]["high"] and cell["psnr"]["value"] > 0


def test_what_is_missing_has_a_reason_and_no_number() -> None:
    cells = made_up()
    for cell in cells.values():
        for image in cell["rows"]:
            image |= {"clip": None, "clip_original": None, "ms_ssim_scales": 3}
    for image in cells["mist", "sd/prompt-1"]["rows"]:
        image |= {"psnr": None}
    cells["ace", "sd/prompt-1"]["rows"][1]["psnr"] = None
    cells["mist", "sd/prompt-2"]["fid"] = {
        "value": None,
        "low": None,
        "high": None,
        "reason": "takes at least 2 images",
    }
    matrix = built(cells, without_clip="no weights in x")
    gone = find(matrix, "mist", "sd/prompt-1")
    assert gone["psnr"] == {
        "value": None,
        "low": None,
        "high": None,
        "reason": "all outputs are identical to those of the originals",
    }
    assert gone["minus_random"]["psnr"]["value"] is None
    assert gone["clip"]["reason"] == "no weights in x"
    partly = find(matrix, "ace", "sd/prompt-1")
    assert partly["psnr"]["value"] == pytest.approx((psnr(1, 0, 0) + psnr(1, 0, 2)) / 2)
    assert partly["minus_random"]["psnr"]["value"] == pytest.approx(
        np.mean([psnr(1, 0, i) - psnr(3, 0, i) for i in (0, 2)])
    )
    warnings = "\n".join(matrix["warnings"])
    for text in ('mist, sd: a "cat"', "3 of 3 outputs are identical", "1 of 3 outputs are identical"):
        assert text in warnings
    assert "no CLIP scores: no weights in x" in warnings and "MS-SSIM is over 3 scales" in warnings
    page = to_markdown(matrix)
    assert "* No CLIP score: no weights in x." in page and "## CLIP" not in page
    lines = list(csv.DictReader(io.StringIO(to_csv(matrix))))
    empty = [line for line in lines if line["metric"] == "clip"]
    assert len(empty) == 8 and all((line["value"], line["reason"]) == ("", "no weights in x") for line in empty)


def test_few_images_and_missing_captions_are_announced() -> None:
    cells = made_up()
    for cell in cells.values():
        cell["fid"]["features"] = 64
        cell["rows"][2]["clip"] = None
    warnings = "\n".join(built(cells)["warnings"])
    assert "1 images have no caption" in warnings
    assert "the Frechet distance of 3 images in 64 features" in warnings


def test_the_csv_is_rfc_4180_and_holds_every_number() -> None:
    matrix = built()
    text = to_csv(matrix)
    assert text.endswith("\r\n") and text.count("\r\n") == 1 + 8 * 5
    assert 'a ""cat"", | sat\non $x$ [mat]"' in text
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(lines) == 8 * 5
    for line in lines:
        column = next(c for c in COLUMNS if c.prompt == line["prompt"])
        value = find(matrix, line["row"], column.key)[line["metric"]]
        assert (float(line["value"]), float(line["low"]), float(line["high"])) == (
            value["value"],
            value["low"],
            value["high"],
        )
        assert (line["model"], line["images"]) == ("sd", "3")
        assert line["stronger_attack"] == ("higher" if line["metric"] == "fid" else "lower")
        assert line["kind"] == ("random signs" if line["row"].startswith("random") else "attack")


def test_markdown_rows_are_whole_and_in_place() -> None:
    page = to_markdown(built())
    tables = [block for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 5 + 4
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "## PSNR (dB): lower = stronger attack" in page
    assert "## Frechet distance on vae features: higher = stronger attack" in page
    low, high = (find(built(), "ace", "sd/prompt-2")["psnr"][end] for end in ("low", "high"))
    line = next(line for line in tables[0].splitlines() if line.startswith("| ace |"))
    assert line.endswith(f"| {np.mean([psnr(1, 1, i) for i in range(3)]):.1f} ({low:.1f} to {high:.1f}) |")
    assert any(line.startswith("| originals | 26.0 (") for line in page.splitlines())
    difference = next(line for line in tables[5].splitlines() if line.startswith("| mist |"))
    assert f"| {np.mean([psnr(0, 0, i) - psnr(2, 0, i) for i in range(3)]):+.1f} (" in difference
    assert len(sections(built(), brief=True)) == 5
    assert "(" not in "".join(cell for row in sections(built(), brief=True)[0].rows for cell in row[1:])


def test_decimals_show_two_digits_of_a_width() -> None:
    assert [decimals(width) for width in (123.0, 9.9, 0.5, 0.0123, 1e-5, 0.0)] == [0, 1, 2, 3, 6, 4]


def test_the_heat_maps_hold_the_numbers_and_darken_towards_the_stronger_attack() -> None:
    matrix = built()
    figure = matrix_figure(matrix)
    assert len(figure.axes) == 5
    for axes, (name, metric) in zip(figure.axes, matrix["metrics"].items(), strict=True):
        assert axes.get_title() == f"{metric['title']}\n{metric['stronger']} (darker) = stronger attack"
        assert [label.get_text() for label in axes.get_yticklabels()] == [row["name"] for row in ROWS]
        heads = [" ".join(label.get_text().split()) for label in axes.get_xticklabels()]
        assert heads == ['sd: a "cat", | sat on $x$ [mat]', "sd: a dog"]
        shown = np.array([float(text.get_text()) for text in axes.texts]).reshape(4, 2)
        values = np.array([[find(matrix, r["name"], c.key)[name]["value"] for c in COLUMNS] for r in ROWS])
        np.testing.assert_allclose(shown, values, atol=np.ptp(values) / 100)
        strength = np.asarray(axes.images[0].get_array())
        stronger = values if metric["stronger"] == "higher" else -values
        np.testing.assert_array_equal(np.argsort(strength, axis=None), np.argsort(stronger, axis=None))
        darkness = -axes.images[0].to_rgba(strength)[..., :3].sum(-1)
        np.testing.assert_array_equal(np.argsort(darkness, axis=None), np.argsort(stronger, axis=None))
        places = [text.get_position() for text in axes.texts]
        assert places == [(c, r) for r in range(4) for c in range(2)]


def test_the_picture_names_what_it_can_not_show() -> None:
    cells = made_up()
    for cell in cells.values():
        for image in cell["rows"]:
            image |= {"clip": None, "clip_original": None}
    cells["mist", "sd/prompt-1"]["rows"] = [{**image, "psnr": None} for image in cells["mist", "sd/prompt-1"]["rows"]]
    figure = matrix_figure(built(cells, without_clip="no weights in x"))
    assert [axes.get_title().split("\n")[0] for axes in figure.axes] == [
        "PSNR (dB)", "SSIM", "MS-SSIM", "Frechet distance",
    ]  # fmt: skip
    assert figure._supxlabel.get_text() == "No CLIP score: no weights in x."
    assert figure.axes[0].texts[0].get_text() == "-" and figure.axes[0].texts[1].get_text() != "-"
    figure.savefig(io.BytesIO(), format="png")


def test_equal_cells_make_a_chart_too() -> None:
    cells = made_up()
    for cell in cells.values():
        cell["rows"] = [{**image, "psnr": 30.0} for image in cell["rows"]]
    figure = matrix_figure(built(cells))
    assert {text.get_text() for text in figure.axes[0].texts} == {"30.0000"}
    figure.savefig(io.BytesIO(), format="png")
