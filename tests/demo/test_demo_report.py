"""The demo's page: the run's own pictures and numbers, sentences that go no further than the numbers, and a browser."""

import base64
import copy
import html
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from lordfast.data import list_images, load_image
from lordfast.demo.methods import METHODS, method_title
from lordfast.demo.picture import AMPLIFIED
from lordfast.demo.report import METRICS, demo_page, evidence
from lordfast.demo.verdict import Metric, contrast, headline
from lordfast.report import (
    Charts,
    Details,
    Gallery,
    Measured,
    Note,
    Page,
    Paragraph,
    Table,
    render_page,
    write_page,
)
from lordfast.report.gate_charts import attention_name
from lordfast.report.loss_charts import loss_window

EVIL = "a photo of </title><script>document.title = 'owned'</script><img src=http://x.y/z.png onerror=alert(1)>"


def blocks(page: Page, kind: type, section: int) -> list[Any]:
    def inside(found: Any) -> list[Any]:
        return [b for block in found for b in (block, *(inside(block.blocks) if isinstance(block, Details) else ()))]

    return [block for block in inside(page.sections[section].blocks) if isinstance(block, kind)]


@pytest.fixture(scope="module")
def summary(demo: Path) -> dict[str, Any]:
    return json.loads((demo / "summary.json").read_text())


@pytest.fixture(scope="module")
def page(demo: Path) -> Page:
    return demo_page(demo)


def test_the_demo_leaves_its_page(demo: Path, page: Page) -> None:
    assert (demo / "report.html").read_text(encoding="utf-8") == render_page(page)


def test_the_pictures_are_the_runs(demo: Path, page: Page) -> None:
    (images,) = blocks(page, Gallery, 0)
    clean, attacked = (list_images(demo / "seed-0" / folder) for folder in ("data/clean", "attacked"))
    assert len(images.rows) == len(clean)
    for row, before, after in zip(images.rows, clean, attacked, strict=True):
        one, other = load_image(before.path), load_image(after.path)
        shown = [picture.image for picture in row.pictures]
        assert (shown[0] == one).all() and (shown[1] == other).all()
        expected = np.clip(128 + AMPLIFIED * (other.astype(int) - one.astype(int)), 0, 255)
        assert (shown[2] == expected).all() and shown[2].dtype == np.uint8
    (drawn,) = blocks(page, Gallery, 1)
    assert [row.title for row in drawn.rows] == [method_title(name) for name in METHODS]
    for row, name in zip(drawn.rows, METHODS, strict=True):
        for picture, record in zip(row.pictures, list_images(demo / "seed-0" / "generated" / name), strict=True):
            assert (picture.image == load_image(record.path)).all()


def test_the_table_has_the_summarys_numbers(page: Page, summary: dict[str, Any]) -> None:
    (table,) = blocks(page, Table, 2)
    assert [column.title for column in table.columns] == [metric.title for metric in METRICS]
    for (title, cells), name in zip(table.rows, METHODS, strict=True):
        assert title == method_title(name)
        assert cells == [Measured.read(summary["methods"][name][metric.key]) for metric in METRICS]
    (charts,) = blocks(page, Charts, 2)
    drawn = [m.title for m in METRICS if any(summary["methods"][name][m.key]["low"] is not None for name in METHODS)]
    assert [chart.title for chart in charts.charts] == drawn


def test_only_metrics_with_intervals_are_drawn(demo: Path, summary: dict[str, Any]) -> None:
    changed = copy.deepcopy(summary)
    for i, name in enumerate(METHODS):
        changed["methods"][name] = {
            "frechet_distance": {"value": 10.0 * i, "low": 10.0 * i - 1, "high": 10.0 * i + 1},
            "high_frequencies": {"value": 1.0, "low": None, "high": None},
        }
    page = demo_page(demo, changed)
    (table,) = blocks(page, Table, 2)
    assert [column.title for column in table.columns] == ["Fréchet distance", "High frequencies"]
    assert [cells[0] for _, cells in table.rows] == [Measured(10.0 * i, 10.0 * i - 1, 10.0 * i + 1) for i in range(5)]
    (charts,) = blocks(page, Charts, 2)
    assert [chart.title for chart in charts.charts] == ["Fréchet distance"]
    # In the order of METHODS: clean LoRA 0, clean LoRD 10, attacked LoRA 20, attacked LoRD 30, and 40 for the
    # one that leaves LoRD out of sampling; lower is better.
    answers = [tile.value for tile in page.top[1].tiles][:4]
    assert answers == ["Yes", "No, it did harm", "No, it did harm", "Yes"]


@pytest.mark.parametrize("layout", ["demo", "seeds"])
def test_intervals_say_what_they_are_over(layout: str, request: pytest.FixtureRequest) -> None:
    page = demo_page(request.getfixturevalue(layout))
    over = "over seeds" if layout == "seeds" else "of seed 0, with 95 % intervals over its images"
    assert over in blocks(page, Table, 2)[0].caption
    (charts,) = blocks(page, Charts, 2)
    assert charts.charts and all(over.removeprefix("of ") in chart.caption for chart in charts.charts)
    auroc = next(block.text for block in blocks(page, Paragraph, 4) if "AUROC" in block.text)
    assert ("interval over seeds" if layout == "seeds" else "interval over images") in auroc


def test_every_run_has_its_curve(page: Page, demo: Path, seeds: Path) -> None:
    stage1, stage2 = ["Stage 1: denoising", "Stage 1: detection"], ["Stage 2: clean images", "Stage 2: attacked images"]
    for out, found, expected in ((demo, page, stage2), (seeds, demo_page(seeds), [*stage1, *stage2])):
        (charts,) = blocks(found, Charts, 3)
        assert [chart.title for chart in charts.charts] == expected
        for folder, chart, line in (
            ("seed-0/stage2/attacked-lord", charts.charts[-1], ("loss", "LoRD + LoRA")),
            *((("stage1", charts.charts[0], ("ldm_clean", "clean images")),) if found is not page else ()),
        ):
            last = json.loads((out / folder / "metrics.jsonl").read_text().splitlines()[-1])
            assert f"{line[1]} ends at {last[line[0]]:.3g}" in chart.alt


def test_lambda_is_shown_over_attention_layers_and_timesteps(page: Page, summary: dict[str, Any]) -> None:
    maps, curves = blocks(page, Charts, 4)
    detection = summary["stories"]["0"]["detection"]
    first = detection["cells"][0]
    own = [c for c in detection["cells"] if attention_name(c["layer"]) == attention_name(first["layer"])]
    own = [c for c in own if c["timestep"] == first["timestep"]]
    assert len(own) == 4, "q, k, v and out"
    clean, attacked, auroc = (chart.svg for chart in maps.charts)
    for svg, key in ((clean, "lambda_clean"), (attacked, "lambda_attacked"), (auroc, "auroc")):
        assert f">{sum(c[key] for c in own) / 4:.2f}</text>" in svg
        assert f">{attention_name(first['layer'])}</text>" in svg
    assert (
        f"{detection['timesteps'][1]['auroc']:.2f} at timestep {detection['timesteps'][1]['timestep']}"
        in curves.charts[0].alt
    )
    (layers,) = blocks(page, Table, 4)
    assert {name: cells[0].value for name, cells in layers.rows} == {
        r["layer"]: r["auroc"] for r in detection["layers"]
    }


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0", "down 1.0 self"),
        ("up_blocks.2.attentions.1.transformer_blocks.3.attn2.to_q", "up 2.1.3 cross"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_v", "mid 0 cross"),
        ("somewhere.else.to_q", "somewhere.else"),
        ("proj", "proj"),
    ],
)
def test_layers_have_short_names(layer: str, name: str) -> None:
    assert attention_name(layer) == name


def test_curves_are_smoothed_over_a_tenth_of_their_steps() -> None:
    assert [loss_window(steps) for steps in (1, 9, 20, 30, 150, 199)] == [1, 1, 3, 3, 15, 19]


INVENTED = [
    Metric("distance", "d", "lower", ""),
    Metric("agreement", "a", "higher", ""),
    Metric("energy", "e", None, ""),
]


def found(d: tuple[float, ...] | None = None, a: tuple[float, ...] | None = None) -> dict[str, Any]:
    both = {"d": Measured(*d) if d else None, "a": Measured(*a) if a else None}
    return {**both, "e": Measured(1.0, 0.9, 1.1)}


@pytest.mark.parametrize(
    ("one", "other", "value", "tone"),
    [
        (found((1, 0, 2), (9, 8, 10)), found((5, 4, 6), (5, 4, 6)), "Yes", "good"),
        (found((5, 4, 6), (5, 4, 6)), found((1, 0, 2), (9, 8, 10)), "No", "bad"),
        (found((1, 0, 2), (5, 4, 6)), found((5, 4, 6), (5.5, 5, 6)), "Yes, in 1 of 2 measures", "good"),
        (found((1, 0, 2), (1, 0, 2)), found((5, 4, 6), (5, 4, 6)), "Mixed: the measures disagree", "neutral"),
        (found((1, 0, 2), (1, 0, 2)), found((2, 1, 3), (2, 1, 3)), "No clear difference", "neutral"),
        (found((1,)), found((5,)), "Can’t be said", "neutral"),
        (found(), found((5, 4, 6)), "Not measured", "neutral"),
    ],
)
def test_an_answer_goes_no_further_than_the_intervals(one: Any, other: Any, value: str, tone: str) -> None:
    tile = contrast("?", INVENTED, one, other, ("Yes", "No"), ("one", "other"))
    assert (tile.value, tile.tone) == (value, tone)
    assert not any("energy" in line for line in tile.lines), "neither direction of it is better"


def test_the_result_is_told_whichever_way_it_went() -> None:
    def told(lord: dict[str, float | dict[str, float]], plain: dict[str, float | dict[str, float]]) -> str:
        return headline(INVENTED, lord, plain)

    def around(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 1, "high": value + 1}

    near, far = {"d": around(1)}, {"d": around(9)}
    assert "came out better in distance." in told(near, far)
    assert "came out worse in distance." in told(far, near)
    assert "not clearly different in distance (the intervals overlap)" in told(near, {"d": around(2)})
    assert "better in distance; worse in agreement" in told(near | {"a": around(0)}, far | {"a": around(9)})
    bare = told({"d": 1.0, "a": 1.0}, {"d": 2.0, "a": 2.0})
    assert "ahead in 1 of 2 measures without an interval, which may be chance" in bare
    assert "Nothing was measured" in told({}, near)


def test_one_seed_or_one_subject_is_called_no_evidence(demo: Path, summary: dict[str, Any]) -> None:
    def notes(found: dict[str, Any]) -> str:
        return " ".join(block.text for block in demo_page(demo, found).top if isinstance(block, Note))

    assert "One person and one seed are no evidence" in notes(summary) and "quick run" in notes(summary)
    assert "One place and one seed are no evidence" in notes(summary | {"landscape": True})
    told = summary["stories"]["0"]
    both = summary | {"seeds": [0, 1], "stories": {"0": told, "1": told}, "quick": False}
    assert "no evidence" not in notes(both) and "quick" not in notes(both)
    assert "All seeds show the same person" in notes(both | {"identity": 5})
    assert evidence(both) is None and "no evidence" in (evidence(summary) or "")


def text_of(page: Page) -> str:
    """All that is read on a page, without markup."""
    return html.unescape(re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", render_page(page), flags=re.DOTALL))


def test_a_page_speaks_of_its_subject(page: Page, seeds: Path, landscape: Path) -> None:
    # Of the settings shown, one has a person as its default, which no part of the demo asks for.
    place = text_of(demo_page(landscape)).replace("iqa_subject: person", "")
    assert "pictures of one place were perturbed" in place and "a photo of a sks landscape" in place
    assert not re.search(r"\b(persons?|people|faces?)\b", place) and "--landscape" in place
    person = text_of(page)
    assert "pictures of one person were perturbed" in person and "This LoRD was shipped with the model." in person
    assert not re.search(r"\bplaces\b|one place", person)
    several = text_of(demo_page(seeds))
    assert "pictures of one person, drawn anew for 2 seeds, were perturbed" in several
    assert "This LoRD was trained here." in several


def test_of_several_people_each_is_counted(seeds: Path) -> None:
    summary = json.loads((seeds / "summary.json").read_text())
    assert "pictures of each of 2 people were" in text_of(demo_page(seeds, summary | {"identity": None}))
    of_places = summary | {"identity": None, "landscape": True}
    assert "pictures of each of 2 places were" in text_of(demo_page(seeds, of_places))


def test_of_several_seeds_the_first_is_shown_and_the_page_says_so(page: Page, seeds: Path) -> None:
    several = demo_page(seeds)
    (drawn,) = blocks(several, Gallery, 1)
    first = list_images(seeds / "seed-0" / "generated" / "clean-lora")[0]
    assert (drawn.rows[0].pictures[0].image == load_image(first.path)).all()
    for section in (0, 1, 3, 4, 5):
        assert any("seed 0, the first of 2" in block.text for block in blocks(several, Paragraph, section)), section
        assert not any("the first of" in block.text for block in blocks(page, Paragraph, section))


def test_each_seeds_numbers_are_folded_away(page: Page, seeds: Path) -> None:
    summary = json.loads((seeds / "summary.json").read_text())
    several = demo_page(seeds, summary)
    together, each = blocks(several, Table, 2)
    (details,) = [block for block in blocks(several, Details, 2) if each in block.blocks]
    assert details.summary == "Each of the 2 seeds" and "over its images" in each.caption
    expected = [
        (
            f"{method_title(name)}, seed {seed}",
            [Measured.read(told["methods"][name][metric.key]) for metric in METRICS],
        )
        for name in METHODS
        for seed, told in summary["stories"].items()
    ]
    assert list(each.rows) == expected
    assert [cells for _, cells in together.rows] == [
        [Measured.read(summary["methods"][name][metric.key]) for metric in METRICS] for name in METHODS
    ]
    counted = sum(told["detection"]["attacked"] for told in summary["stories"].values())
    assert f"and {counted} attacked images of all seeds." in several.top[1].tiles[-1].lines[1]
    assert len(blocks(page, Table, 2)) == 1


# ---- in a browser ----


@pytest.fixture(scope="module")
def hostile(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run whose prompt and settings are markup, and with every kind of chart."""
    out = tmp_path_factory.mktemp("hostile") / "run"
    shutil.copytree(demo, out, ignore=shutil.ignore_patterns("cache", "checkpoints", "perturbed"))
    for path in out.rglob("config.yaml"):
        values = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(values | {"prompt": EVIL}))
    summary = json.loads((out / "summary.json").read_text())
    for name in METHODS:
        summary["methods"][name] |= {"frechet_distance": {"value": 1.0, "low": 0.5, "high": 1.5}}
    summary["stories"]["0"] |= {"prompt": EVIL, "warnings": [EVIL]}
    write_page(demo_page(out, summary), out / "report.html")
    return out / "report.html"


def colours(browser: Any) -> list[str]:
    return browser.evaluate(
        """["body", "main .card svg text", "main .card svg path[style*='--series']", "h1"].map(
            (selector) => {
                const style = getComputedStyle(document.querySelector(selector));
                return [style.backgroundColor, style.color, style.fill, style.stroke].join();
            })"""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_errors_requests_or_overflow(browser: Any, hostile: Path, scheme: str) -> None:
    browser.open(hostile, 360, 800, scheme)
    assert browser.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    asked = [event["request"]["url"] for event in browser.of("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [hostile.as_uri()]
    assert not browser.of(
        "Network.loadingFailed", "Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"
    )
    widths = browser.evaluate("[...document.images].map((image) => image.naturalWidth)")
    assert len(widths) == 3 * 3 + len(METHODS) * 2 and set(widths) == {64}
    # What is folded away must fit too.
    browser.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true })")
    assert browser.evaluate("document.documentElement.scrollWidth") == 360
    too_wide = """[...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > 361
        && !e.closest(".scroll, pre, nav, svg")).map((e) => e.outerHTML.slice(0, 200))"""
    assert browser.evaluate(too_wide) == []
    assert browser.evaluate("document.title") == "Can LoRD undo an attack on training images?"
    assert browser.evaluate(f"document.body.textContent.includes({json.dumps(EVIL)})")
    assert browser.evaluate("getComputedStyle(document.images[0]).imageRendering") == "pixelated"


def shot(browser: Any) -> np.ndarray:
    data = browser.call("Page.captureScreenshot")["data"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"))


def test_light_and_dark_follow_the_user_and_the_button(browser: Any, hostile: Path) -> None:
    seen, brightness = {}, {}
    for scheme in ("light", "dark"):
        browser.open(hostile, 1200, 800, scheme)
        seen[scheme], brightness[scheme] = colours(browser), np.median(shot(browser))
    assert all(light != dark for light, dark in zip(seen["light"], seen["dark"], strict=True)), seen
    assert brightness["light"] > 200 and brightness["dark"] < 60
    # The page is dark now: the button makes it light, and dark again.
    button = "document.getElementById('theme')"
    assert browser.evaluate(f"{button}.getAttribute('aria-pressed')") == "true"
    browser.evaluate(f"{button}.click()")
    assert colours(browser) == seen["light"] and browser.evaluate(f"{button}.getAttribute('aria-pressed')") == "false"
    browser.evaluate(f"{button}.click()")
    assert colours(browser) == seen["dark"]
    # Paper is white, whatever the screen shows.
    browser.look(1200, 800, "dark", media="print")
    assert colours(browser)[1:] == seen["light"][1:]


def test_it_prints_with_everything_unfolded(browser: Any, hostile: Path) -> None:
    browser.open(hostile)
    folded = "document.querySelectorAll('details:not([open])').length"
    before = browser.evaluate(folded)
    assert before > 3
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate(folded) == 0
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert browser.evaluate(folded) == before
    assert base64.b64decode(browser.call("Page.printToPDF")["data"]).startswith(b"%PDF")


def test_text_in_drawings_is_large_enough_on_a_phone_and_inside_them(browser: Any, hostile: Path) -> None:
    browser.open(hostile, 360, 800)
    sizes = """[...document.querySelectorAll(".card svg")].map((svg) => { const box = svg.getBoundingClientRect();
        return [...svg.querySelectorAll("text")].map((text) => { const t = text.getBoundingClientRect();
            return [parseFloat(getComputedStyle(text).fontSize) * box.width / svg.viewBox.baseVal.width,
                    t.left - box.left, box.right - t.right]; }) }).flat()"""
    found = np.array(browser.evaluate(sizes))
    assert len(found) > 50
    assert found[:, 0].min() > 7.5
    assert found[:, 1:].min() > -3
