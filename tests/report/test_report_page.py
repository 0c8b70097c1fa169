"""The page as a document: escaped, self-contained, complete; numbers as they were given."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lordfast.report import (
    Chart,
    Charts,
    Code,
    Column,
    Details,
    Facts,
    Gallery,
    Line,
    Measured,
    Note,
    Page,
    Paragraph,
    Picture,
    PictureRow,
    Section,
    Table,
    Tile,
    Tiles,
    judge,
    line_chart,
    render_page,
    write_page,
)
from lordfast.report.numbers import decimals, written

EVIL = "</title></script><script>alert(1)</script><img src=x onerror=alert(2)> \"'`{{ 7 * 7 }}{% raw %} & http://x.y/z"
IMAGE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Document(HTMLParser):
    """Elements with their attributes and the texts in them; complains about elements closed in another order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def table(*cells: Measured | str | None) -> Table:
    return Table("method", [Column("metric", "lower", "what it is")], [(f"row {i}", [c]) for i, c in enumerate(cells)])


def page_of(text: str) -> Page:
    """A page with every kind of block, and `text` wherever a text can stand."""
    svg = line_chart([Line(text, [1, 2], [1.0, 2.0])], x_label=text, y_label=text, reference=(text, 1.5))
    blocks = [
        Paragraph(text),
        Note(text),
        Tiles([Tile(text, text, [text], "good")]),
        Gallery([PictureRow(text, [Picture(IMAGE, text, text)], text)]),
        Table(text, [Column(text, "higher", text)], [(text, [text])], text),
        Charts([Chart(text, svg, text, text)] * 2),
        Facts([(text, text)]),
        Code(text),
        Details(text, [Paragraph(text), Details(text, [Code(text)])]),
    ]
    return Page(text, [Section(text, blocks), Section(text, blocks[:1])], blocks[:2], kicker=text, foot=text)


def test_texts_are_texts_wherever_they_stand() -> None:
    plain, evil = Document(render_page(page_of("harmless"))), Document(render_page(page_of(EVIL)))
    # The very same elements with the same attributes: nothing of the text became markup.
    assert [(tag, set(attributes)) for tag, attributes in evil.elements] == [
        (tag, set(attributes)) for tag, attributes in plain.elements
    ]
    for tag in ("title", "h1", "h2", "h3", "p", "span", "strong", "caption", "th", "td", "dt", "dd", "code", "summary"):
        assert EVIL in evil.texts[tag], tag
    assert EVIL[:40] in {text[:40] for text in evil.texts["text"]}, "the drawing"
    assert {attributes["alt"] for attributes in evil.attributes("img")} == {EVIL}
    assert EVIL in [attributes.get("aria-label") for attributes in evil.attributes("svg")]


def test_the_page_loads_nothing_and_runs_only_its_own_script() -> None:
    text = render_page(page_of("harmless"))
    document = Document(text)
    assert (
        "http:" not in text
        and "https:" not in text
        and "@import" not in text
        and "//" not in re.sub('base64,[^"]+', "", text).replace("// ", "")
    )
    for _, attributes in document.elements:
        for name in ("src", "href", "srcset", "poster", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("data:", "#")), attributes
    policy = next(a["content"] for a in document.attributes("meta") if "http-equiv" in a)
    assert policy is not None and "default-src 'none'" in policy
    (script,) = document.texts["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy


def test_the_document_says_what_it_is() -> None:
    document = Document(render_page(page_of("harmless")))
    assert document.elements[0] == ("html", {"lang": "en"})
    assert {"charset": "utf-8"} in document.attributes("meta")
    assert "width=device-width" in str([a for a in document.attributes("meta") if a.get("name") == "viewport"])
    ids = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"] for a in document.attributes("a")]
    assert {str(target)[1:] for target in targets} <= set(ids) and len(targets) == 3


def test_images_are_the_pixels_that_were_given() -> None:
    (image,) = Document(render_page(page_of("harmless"))).attributes("img")
    assert (image["width"], image["height"], image["alt"]) == ("7", "5", "harmless")
    kind, _, content = str(image["src"]).partition(",")
    assert kind == "data:image/png;base64"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))) == IMAGE).all()


def test_a_table_shows_the_numbers_that_were_given() -> None:
    numbers = [Measured(1.23456789, 1.0, 1.5), Measured(-0.5), None, "n/a"]
    document = Document(render_page(Page("t", [Section("s", [table(*numbers)])])))
    assert [float(str(a["value"])) for a in document.attributes("data")] == [1.23456789, -0.5]
    assert document.texts["data"] == ["1.23", "−0.50"]
    # No interval but where one was measured, and no number where there is none.
    assert [text for text in document.texts["span"] if " to " in text] == ["1.00 to 1.50"]
    assert [text.strip() for text in document.texts["td"] if text.strip()] == ["–", "n/a"]
    assert "lower is better" in str(document.attributes("span"))
    assert "what it is" in document.texts["dd"]


def test_a_row_that_does_not_fit_its_table_is_refused() -> None:
    with pytest.raises(ValueError, match="rows: expected 1 cells in 'a', got 2"):
        Table("method", [Column("metric")], [("a", [None, None])])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"value": 1, "low": 0, "high": 2}, Measured(1.0, 0.0, 2.0)),
        ({"value": 1.5, "low": None, "high": None}, Measured(1.5)),
        ({"value": 1.5, "low": 1.0}, Measured(1.5)),
        ({"value": 1.5, "low": 1.0, "high": float("nan")}, Measured(1.5)),
        (0.25, Measured(0.25)),
        ({"low": 1.0, "high": 2.0}, None),
        (float("nan"), None),
        (None, None),
        (True, None),
        ("0.5", None),
    ],
)
def test_measured_numbers_are_read_from_what_a_summary_holds(found: object, expected: Measured | None) -> None:
    assert Measured.read(found) == expected


def test_only_intervals_that_are_apart_decide() -> None:
    low, high, between = Measured(1.0, 0.5, 1.5), Measured(3.0, 2.0, 4.0), Measured(1.8, 1.5, 2.1)
    assert judge(low, high, "lower") == "better" and judge(low, high, "higher") == "worse"
    assert judge(high, low, "lower") == "worse" and judge(high, low, "higher") == "better"
    # One end in common is an overlap.
    for pair in ((low, between), (between, low), (between, high), (high, between), (low, low)):
        assert judge(*pair, "lower") == "no clear difference"
    assert judge(low, Measured(9.0), "lower") == "unknown"


@pytest.mark.parametrize(
    ("values", "digits", "texts"),
    [
        ([1.08, 1.179], 2, ["1.08", "1.18"]),
        ([0.0137, -0.02583], 4, ["0.0137", "−0.0258"]),
        ([123.4, -0.2], 0, ["123", "0"]),
        ([0.0, 0.0], 2, ["0.00", "0.00"]),
        ([3e-9], 6, ["0.000000"]),
    ],
)
def test_numbers_have_the_decimals_that_the_largest_needs(values: list[float], digits: int, texts: list[str]) -> None:
    assert decimals(values) == digits
    assert [written(value, digits) for value in values] == texts


def test_the_file_is_the_page_and_the_same_every_time(tmp_path: Path) -> None:
    write_page(page_of("harmless"), tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == render_page(page_of("harmless"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]
