"""Pages of evaluations and experiments: the numbers of the JSON files, intervals, reasons, and what failed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lordfast.report import (
    Charts,
    Details,
    Gallery,
    Measured,
    Note,
    Page,
    Paragraph,
    Table,
    Tiles,
    render_page,
    write_page,
)
from lordfast.report.runs import run_page

EVIL = "</td><script>document.title = 1</script><img src=x onerror=alert(1)> \"'& {{ 7 * 7 }}"
LAYERS = [f"down_blocks.{i}.attentions.0.transformer_blocks.0.attn1.to_q" for i in range(2)]


def blocks(page: Page, kind: type) -> list[Any]:
    """All blocks of a kind, in order, folded ones included."""

    def inside(found: Any) -> list[Any]:
        return [b for block in found for b in (block, *(inside(block.blocks) if isinstance(block, Details) else ()))]

    every = inside([*page.top, *(block for section in page.sections for block in section.blocks)])
    return [block for block in every if isinstance(block, kind)]


def charts(page: Page) -> dict[str, str]:
    return {chart.title: chart.alt for group in blocks(page, Charts) for chart in group.charts}


def said(page: Page) -> str:
    """All texts of paragraphs and notes."""
    return " ".join(block.text for kind in (Paragraph, Note) for block in blocks(page, kind))


def area(value: float) -> dict[str, float]:
    means = {"lambda_clean": 0.25, "lambda_attacked": 0.75}
    return {"auroc": value, "auroc_low": value - 0.1, "auroc_high": value, **means}


DETECTION = {
    "clean": 4,
    "attacked": 4,
    **area(0.875),
    "timesteps": [{"timestep": t, **area(a)} for t, a in ((20, 1.0), (600, 0.625))],
    "layers": [{"layer": name, **area(0.5)} for name in LAYERS],
    "cells": [{"layer": name, "timestep": t, **area(0.5)} for name in LAYERS for t in (20, 600)],
}
LAMBDAS = [
    {"part": "detection", "set": kind, "image": f"{i}.png", "timestep": t, "lambda": base + i / 100 + t / 10000}
    for kind, base in (("clean", 0.2), ("attacked", 0.7))
    for i in range(4)
    for t in (20, 600)
]
FRECHET = {"frechet_distance": 23.456, "frechet_distance_low": 20.1, "frechet_distance_high": 27.9}
VAE = {"features": "vae", "generated": 31, "reference": 37, **FRECHET}
EVALUATED = {
    "distribution": {
        **VAE,
        "sets": {"vae": VAE, "inception": {"features": "inception", "unavailable": f"no weights in {EVIL}"}},
    },
    "clip": {
        "model": "openai/clip",
        "clip_iqa": {"unavailable": "the model openai/clip is not there"},
        "clip_t": {"value": 0.31, "low": 0.29, "high": 0.33, "images": 31},
    },
    "denoising": {"loss": {"value": 0.5, "low": 0.4, "high": 0.6}, "timesteps": [{"timestep": 50, "value": 0.75}]},
    "pairs": {
        "pairs": 4,
        "psnr": 33.25,
        "ms_ssim": None,
        "unavailable": {"ms_ssim": "too small for two scales"},
        "unmatched_generated": ["a", "b"],
    },
    "unavailable": {"clip_iqa": "the model openai/clip is not there"},
    "detection": DETECTION,
    "skipped": [],
    "warnings": ["the covariance is singular"],
    "seconds": 2.0,
}


@pytest.fixture
def evaluation(tmp_path: Path, make_run: Callable[..., Path], draw: Callable[..., Any]) -> Path:
    draw(tmp_path / "clean", 4)
    pairs = [{"part": "pairs", "image": f"{i}.png", "psnr": 30.0 + i} for i in range(4)]
    config = {"generated": str(tmp_path / "clean"), "reference": str(tmp_path / "gone"), "lord": EVIL}
    return make_run(tmp_path / "evaluation", "evaluate", config, [*pairs, *LAMBDAS], EVALUATED)


def test_an_evaluation_shows_its_numbers_intervals_and_reasons(evaluation: Path) -> None:
    page = run_page(evaluation)
    rows = {name: cells for table in blocks(page, Table) if table.head == "measure" for name, cells in table.rows}
    assert rows["Fréchet distance ↓"] == ["23.5", "20.1 to 27.9"] and rows["CLIP-T ↑"] == ["0.310", "0.290 to 0.330"]
    assert rows["PSNR (dB) ↑"] == ["33.25", ""] and rows["CLIP-IQA ↑"] == ["unavailable", ""]
    assert rows["AUROC of λ ↑"] == ["0.875", "0.775 to 0.875"]
    captions = [table.caption for table in blocks(page, Table)]
    assert captions[:2] == ["Scores", "Distribution, vae features, generated 31, reference 37"]
    assert rows["loss"] == ["0.500", "0.400 to 0.600"] and rows["timestep 50"] == ["0.75", ""]
    text = said(page)
    assert "CLIP-IQA is unavailable: the model openai/clip is not there" in text
    assert f"Distribution on inception features is unavailable: no weights in {EVIL}" in text
    assert "MS-SSIM is unavailable: too small for two scales" in text
    assert "The covariance is singular." in text
    # λ: 0.2 + i / 100 + t / 10000, mean over i and t.
    found = charts(page)
    assert "clean: mean 0.246 of 4; attacked: mean 0.746 of 4" in found["λ, mean over timesteps"]
    assert "clean: mean 0.217 of 4" in found["λ at timestep 20"] and "AUROC of λ" in found
    assert "images: mean 31.5 of 4" in found["PSNR (dB)"]
    assert "a share of 0.875 (0.775 to 0.875) of all pairs" in text
    assert [row.title for gallery in blocks(page, Gallery) for row in gallery.rows] == ["generated"]
    assert "<script>document" not in render_page(page)


def test_of_an_evaluation_without_lambda_nothing_is_said_about_it(evaluation: Path) -> None:
    found = {name: part for name, part in EVALUATED.items() if name != "detection"}
    (evaluation / "summary.json").write_text(json.dumps(found))
    assert not any(section.title.startswith("Lambda") for section in run_page(evaluation).sections)
    (evaluation / "summary.json").unlink()
    page = run_page(evaluation)
    assert "This run is unfinished" in said(page) and not [s for s in page.sections if s.title == "Metrics"]


def test_transfer_shows_the_matrix_and_what_is_unavailable(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    values = {"pgd": 40.0, EVIL: 45.0}
    missing = {"value": None, "reason": "no CLIP"}
    matrix = {
        "metrics": {
            "psnr": {"title": "PSNR (dB)", "stronger": "lower"},
            "clip": {"title": "CLIP score", "stronger": "lower"},
        },
        "rows": [{"name": name} for name in values],
        "columns": [{"name": "m", "label": "a model"}],
        "cells": [{"row": name, "column": "m", "psnr": estimate(v), "clip": missing} for name, v in values.items()],
        "images": 9,
    }
    page = run_page(make_run(tmp_path / "run", "transfer", {}, [], matrix))
    (table,) = blocks(page, Table)
    assert [column.title for column in table.columns] == ["a model"]
    assert list(table.rows) == [("pgd", [Measured(40.0, 39.0, 41.0)]), (EVIL, [Measured(45.0, 44.0, 46.0)])]
    assert "CLIP score is unavailable: no CLIP." in said(page)


def estimate(value: float, half: float = 1.0) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "n": 2}


def row(method: str, share: float, fid: float, gap: dict[str, float] | None = None) -> dict[str, Any]:
    eps = "16/255"
    clean = share == 0
    place = {"attack": None, "eps": None, "exposure": "clean"} if clean else {"attack": "pgd", "eps": eps}
    if not clean:
        place["exposure"] = f"pgd {eps}{f', {share:.0%} of the pictures' if share < 1 else ''}"
    entry = {**estimate(fid), "values": {"a": fid - 1, "b": fid + 1}, "against_lora": None, "gap_closed": gap}
    iqa = {"value": None, "low": None, "high": None, "n": 0, "unavailable": f"no CLIP in {EVIL}"}
    measures = {"fid": entry, "iqa": iqa}
    return {"dataset": "faces", "method": method, "proportion": share, "n": 2, "measures": measures, **place}


STUDY = {
    "complete": False,
    "cells": {"all": 20, "done": 15, "failed": 1, "blocked": 1, "left": 3},
    "failed": [{"cell": "faces/identity-0/x", "type": "ValueError", "message": EVIL}],
    "seconds": {
        "train": {"cells": 4, "mean": 10.0, "total": 40.0},
        "attack": {"cells": 2, "mean": 60.0, "total": 120.0},
    },
    "model": "demo",
    "replicates": 2,
    "identities": 2,
    "seeds": 1,
    "columns": [
        {"key": "fid", "title": "FID", "better": "lower"},
        {"key": "iqa", "title": "CLIP-IQA", "better": "higher"},
    ],
    "rows": [
        row("clean-lora", 0, 10.0),
        row("lord", 0, 11.0),
        row("lora", 0.5, 15.0),
        row("lord", 0.5, 13.0, estimate(0.4, 0.3)),
        row("lora", 1, 30.0),
        row("lord", 1, 18.0, estimate(0.6, 0.7)),
    ],
    "gates": [
        {
            **{"dataset": "faces", "method": "lord", "attack": "pgd", "eps": "16/255", "n": 2},
            "measures": {key: estimate(area(0.8)[key], 0.05) for key in ("auroc", "lambda_clean", "lambda_attacked")},
            "timesteps": DETECTION["timesteps"],
            "cells": DETECTION["cells"],
        }
    ],
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., Path], draw: Callable[..., Any]) -> Path:
    """A half-finished study of one replicate with pictures, and another one with fewer runs; read only."""
    out = tmp_path_factory.mktemp("study") / "run"
    faces = out / "cells" / "faces"
    start = faces / "identity-1" / "seed-0"
    draw(start / "data" / "train", 4)
    draw(make_run(start / "attack-pgd" / "attacked", "attack pgd", {}, [], {"images": 4}), 4)
    generated = {}
    for i, method in enumerate(("lora", "lord")):
        cell = start / "pgd" / method
        lora = make_run(cell / "lora", "stage2", {}, [{"loss": 0.5 + i}, {"loss": 0.25 + i}], {"steps": 2})
        drawn = make_run(cell / "generated", "generate", {"lora": str(lora)}, [], {"images": 7})
        draw(drawn, 7, seed=i)
        generated[method] = str(drawn.relative_to(out))
    make_run(start / "pgd" / "gate" / "metrics" / "gate", "evaluate", {}, LAMBDAS, {"detection": DETECTION})
    defense = [{"loss": 1 / i, "ldm_clean": 0.5 / i, "ldm_perturbed": 0.75 / i} for i in (1, 2)]
    make_run(faces / "stage1" / "lord-1" / "lord", "stage1", {}, defense, {"steps": 2})
    make_run(faces / "identity-0" / "seed-0" / "pgd" / "lora" / "generated", "generate", {}, [], {})
    place = start.relative_to(out).as_posix()
    folders = {"original": f"{place}/data/train", "attacked": f"{place}/attack-pgd/attacked"}
    pictures = {"dataset": "faces", "exposure": "pgd 16/255", **folders, "generated": generated}
    return make_run(out, "experiment fig7", {}, [{"cell": "a"}], None, {**STUDY, "pictures": [pictures]})


@pytest.fixture(scope="module")
def page(study: Path) -> Page:
    return run_page(study)


@pytest.fixture
def other(study: Path, tmp_path: Path) -> Callable[[dict[str, Any]], Page]:
    """The page of the same study with other results."""

    def change(results: dict[str, Any]) -> Page:
        shutil.copytree(study, tmp_path / "other")
        (tmp_path / "other" / "results.json").write_text(json.dumps(results))
        return run_page(tmp_path / "other")

    return change


def test_a_study_shows_methods_with_intervals_and_the_gap_that_each_closes(page: Page) -> None:
    tables = {table.caption: dict(table.rows) for table in blocks(page, Table)}
    assert tables["pgd 16/255"] == {
        "clean-lora": ["2", Measured(10.0, 9.0, 11.0), "unavailable"],
        "lora": ["2", Measured(30.0, 29.0, 31.0), "unavailable"],
        "lord": ["2", Measured(18.0, 17.0, 19.0), "unavailable"],
    }
    gap = tables["Share of the gap closed: pgd 16/255"]
    assert list(gap) == ["lord"] and gap["lord"][1].value == 0.6 and gap["lord"][1].low == pytest.approx(-0.1)
    assert tables["clean pictures"]["lord"][1] == Measured(11.0, 10.0, 12.0)
    tiles = {tile.label: tile for block in blocks(page, Tiles) for tile in block.tiles}
    # Of 0.1 to 0.7 and -0.1 to 1.3, one is above 0.
    assert tiles["Gap closed, FID"].value == "1 of 2 intervals are above 0"
    assert tiles["Cells"].value == "15 of 20" and tiles["Cells"].tone == "bad"
    assert tiles["Time of all cells"].value == "2 min 40 s"
    text = said(page)
    assert "unfinished: 15 of 20 cells are there, 3 are still to be computed, 1 failed, 1 need a failed one" in text
    assert f"CLIP-IQA is unavailable: no CLIP in {EVIL}" in text
    assert tables["--retry computes them again"] == {"faces/identity-0/x": ["ValueError", EVIL]}
    assert tables["Where the time went"]["attack"] == ["2", "60", "120"]
    assert "<script>document" not in render_page(page)


def test_a_study_of_shares_has_a_curve_per_method(page: Page, other: Callable[[dict[str, Any]], Page]) -> None:
    alt = charts(page)["FID over the share of attacked pictures: pgd 16/255"]
    # LoRD on clean pictures is its own start; the plain LoRA's is the clean LoRA.
    assert "lora 10 to 30" in alt and "lord 11 to 18" in alt
    one = {**STUDY, "rows": [row for row in STUDY["rows"] if row["proportion"] in (0, 1)]}
    assert not any("share of attacked" in title for title in charts(other(one)))


def test_shares_of_several_budgets_have_a_chart_each_and_lines_that_say_which(
    other: Callable[[dict[str, Any]], Page],
) -> None:
    def weaker(found: dict[str, Any]) -> dict[str, Any]:
        return {**found, "eps": "4/255", "exposure": found["exposure"].replace("16/255", "4/255")}

    gap = estimate(0.3, 0.1)
    rows = [row("clean-lora", 0, 10.0), row("lora", 0.5, 15.0), row("lora", 1, 30.0)]
    rows += [row("lord", 0.5, 13.0, gap), {**row("lord", 1, 18.0, gap), "title": "LoRD"}]
    rows += [weaker(row("lora", 0.5, 11.0)), weaker(row("lora", 1, 12.0)), weaker(row("lord", 1, 11.5, gap))]
    there = [{**one, "dataset": "landscapes"} for one in (row("lora", 1, 70.0), row("lord", 1, 60.0, gap))]
    found = other({**STUDY, "rows": [*rows, *there]})
    title = "FID over the share of attacked pictures: pgd"
    drawn = {name: alt for name, alt in charts(found).items() if "share of attacked" in name}
    assert list(drawn) == [f"{title} 16/255", f"{title} 4/255"]
    # LoRD was not run on clean pictures: its line begins where it was.
    assert drawn[f"{title} 16/255"].endswith("lora 10 to 30; lord 13 to 18.")
    assert drawn[f"{title} 4/255"].endswith("lora 10 to 12; lord 11.5 to 11.5.")
    (tile,) = [tile for block in blocks(found, Tiles) for tile in block.tiles if tile.label == "Gap closed, FID"]
    assert [line.partition(":")[0] for line in tile.lines] == [
        "lord, faces, pgd 16/255, 50% of the pictures",
        "LoRD, faces, pgd 16/255",
        "lord, faces, pgd 4/255",
        "lord, landscapes, pgd 16/255",
    ]


@pytest.mark.parametrize("listed", [True, False])
def test_a_study_shows_pictures_losses_and_lambda_of_a_replicate(
    page: Page, other: Callable[[dict[str, Any]], Page], listed: bool
) -> None:
    if not listed:
        page = other({**STUDY, "rows": []})
    galleries = blocks(page, Gallery)
    pairs, drawn = galleries
    assert len(pairs.rows) == 3 and len(pairs.rows[0].pictures) == 3
    names = ["lora", "lord"] if listed else ["pgd/lora", "pgd/lord"]
    assert [row.title for row in drawn.rows] == names and [len(row.pictures) for row in drawn.rows] == [6, 6]
    assert drawn.rows[0].caption == "6 of 7"
    found = charts(page)
    loss = found["Stage 2, faces, pgd 16/255" if listed else "Stage 2, faces"]
    assert f"{names[0]} ends at 0.25" in loss and f"{names[1]} ends at 1.25" in loss
    assert "clean images ends at 0.25" in found["Denoising"]
    assert "clean: mean 0.246 of 4" in found["λ, mean over timesteps"]
    assert "faces, lord, pgd, 16/255 0.80" in next(alt for alt in found.values() if alt.startswith("AUROC: "))


def test_experiments_with_purifiers_are_grouped_by_budget(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    def condition(eps: str | None, purifier: str | None, value: float, recovered: Any = None) -> dict[str, Any]:
        measure = {"features": "a.b:c", "distance": "kernel", "mean": estimate(value), "recovered": recovered}
        return {"condition": "x", "title": "t", "eps": eps, "purifier": purifier, "n": 2, "measures": [measure]}

    rows = [condition(None, None, 1.0), condition("4/255", None, 2.0), condition("8/255", None, 3.0)]
    rows.append(condition("8/255", "jpeg", 2.5, {"value": 0.25, "low": None, "high": None, "n": 2}))
    results = {"complete": True, "cells": {"all": 4, "done": 4}, "rows": rows, "seconds": {}, "replicates": 2}
    page = run_page(make_run(tmp_path / "run", "experiment purifiers", {}, [], {"replicates": 2}, results))
    tables = {table.caption: dict(table.rows) for table in blocks(page, Table)}
    assert list(tables["attacked 8/255"]) == ["clean", "not purified", "jpeg"]
    assert tables["attacked 8/255"]["jpeg"] == ["2", Measured(2.5, 1.5, 3.5)]
    assert tables["Share of the gap closed: attacked 8/255"] == {"jpeg": ["2", Measured(0.25)]}
    assert list(tables["attacked 4/255"]) == ["clean", "not purified"]
    # What is open is the budget with most methods.
    assert next(block.summary for block in page.sections[0].blocks if isinstance(block, Details)) == "attacked 4/255"
    tile = next(tile for block in blocks(page, Tiles) for tile in block.tiles if tile.label.startswith("Gap closed"))
    assert tile.value == "Can’t be said" and "jpeg, attacked 8/255: 0.25" in tile.lines
    assert "unfinished" not in said(page)


def test_an_experiment_that_has_only_begun_has_a_page(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    page = run_page(make_run(tmp_path / "run", "experiment table1", {"model": "demo"}))
    assert "This experiment is unfinished: no table was written yet." in said(page)


# ---- in a browser ----


def test_a_large_page_fits_loads_and_raises_nothing(browser: Any, study: Path, page: Page, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(page, path)
    for width, scheme in ((390, "light"), (390, "dark"), (1200, "light")):
        browser.open(path, width, 844, scheme)
        asked = [event["request"]["url"] for event in browser.of("Network.requestWillBeSent")]
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
        errors = ("Network.loadingFailed", "Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        assert not browser.of(*errors)
        widths = np.array(browser.evaluate("[...document.images].map((image) => image.naturalWidth)"))
        assert len(widths) == 3 * 3 + 2 * 6 and (widths == 8).all()
        browser.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true })")
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        too_wide = f"""[...document.querySelectorAll("body *")].filter((e) => !e.closest(".scroll, pre, nav, svg")
            && e.getBoundingClientRect().right > {width + 1}).map((e) => e.outerHTML.slice(0, 200))"""
        assert browser.evaluate(too_wide) == []
        dark = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] < 60"
        assert browser.evaluate(dark) == (scheme == "dark")
    assert browser.evaluate("document.title") == "Experiment fig7"
    assert browser.evaluate("[...document.images].every((image) => image.alt)")
