"""Charts: smoothing against its definition, drawings that are well-formed, hold the numbers, and follow the page."""

import re
from xml.etree import ElementTree

import matplotlib
import pytest

from lordfast.report import Line, Measured, heat_map, histogram, interval_chart, line_chart, running_mean
from lordfast.report.svg import place

NOISY = [3.0, -1.0, 4.0, 1.0, 5.0, 9.0, -2.0]
ODD = "<b> & \"c\" $x$ 'd' ]]>"


def draw_all() -> dict[str, str]:
    lines = [Line(ODD, range(7), NOISY), Line("other", [0, 3, 6], [1.0, 2.0, 3.0])]
    return {
        "lines": line_chart(lines, x_label="step", y_label="loss", window=3, reference=(ODD, 2.0)),
        "heat": heat_map([[0.0, 0.25], [None, 1.0]], [ODD, "row"], ["20", "600"], x_label="t", low=0, high=1),
        "intervals": interval_chart([(ODD, Measured(1.0, 0.5, 1.5)), ("bare", Measured(2.0))], x_label="distance"),
        "shares": histogram([("plain", [1.0, 2.0]), ("other", [3.0])], x_label=ODD),
    }


@pytest.fixture(scope="module")
def drawings() -> dict[str, str]:
    return draw_all()


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("text")]


@pytest.mark.parametrize("window", [1, 3, 5, 99])
def test_smoothing_is_the_mean_of_as_many_neighbours_on_either_side(window: int) -> None:
    smooth = running_mean(NOISY, window)
    assert len(smooth) == len(NOISY)
    for i, value in enumerate(smooth):
        reach = 0
        while reach < window // 2 and i - reach - 1 >= 0 and i + reach + 1 < len(NOISY):
            reach += 1
        around = [NOISY[j] for j in range(len(NOISY)) if abs(i - j) <= reach]
        assert value == pytest.approx(sum(around) / len(around), abs=1e-12)
    # A straight line stays what it is, to its very ends.
    assert running_mean([2.0 * i for i in range(9)], window) == pytest.approx([2.0 * i for i in range(9)])


def test_smoothing_refuses_windows_without_a_middle() -> None:
    for window in (0, -1, 4):
        with pytest.raises(ValueError, match=f"window: expected an odd number of at least 1, got {window}"):
            running_mean(NOISY, window)
    assert running_mean([], 3) == []


@pytest.mark.parametrize("name", ["lines", "heat", "intervals", "shares"])
def test_drawings_take_their_colours_and_font_from_the_page(drawings: dict[str, str], name: str) -> None:
    svg = drawings[name]
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg" and "viewBox" in root.attrib and "width" not in root.attrib
    assert ODD in texts(svg), "a label is shown letter by letter"
    styles = " ".join(element.get("style", "") for element in root.iter())
    assert "var(--" in styles
    assert not re.search(r"#[0-9a-f]{6}", styles.replace("#ffffff", "")), "a colour that does not follow the page"
    assert "font-family" not in styles and "DejaVu" not in svg
    assert "http" not in svg and not list(root.iter("style")) and not list(root.iter("metadata"))


def test_every_number_of_a_heat_map_stands_in_its_cell() -> None:
    values = [[0.0, 0.123], [None, -0.004]]
    svg = heat_map(values, ["a", "b"], ["x", "y"], x_label="t", low=-1, high=1, centre=0)
    found = texts(svg)
    assert [text for text in found if re.fullmatch(r"[−-]?\d\.\d\d", text)] == ["0.00", "0.12", "0.00"]
    assert {"a", "b", "x", "y", "t"} <= set(found)


def opacities(svg: str, role: str) -> list[float]:
    styles = [element.get("style", "") for element in ElementTree.fromstring(svg).iter("path")]
    own = [style for style in styles if f"var(--{role})" in style]
    return [float(match[1]) if (match := re.search(r"opacity: ([\d.]+)", style)) else 1.0 for style in own]


def test_colour_is_as_strong_as_the_number_is_far_from_none() -> None:
    plain = heat_map([[0.0, 0.25, 1.0, 7.0]], ["r"], list("abcd"), x_label="t", low=0, high=1)
    assert opacities(plain, "hot") == pytest.approx([0.25, 1.0, 1.0]), "nothing is drawn for 0"
    both = heat_map([[0.5, 0.25, 0.75, -3.0]], ["r"], list("abcd"), x_label="t", low=0, high=1, centre=0.5)
    assert opacities(both, "hot") == pytest.approx([0.5])
    assert opacities(both, "cold") == pytest.approx([0.5, 1.0])


def curve(svg: str, role: str) -> list[tuple[float, float]]:
    """The points of the last line of a series."""
    own = [e for e in ElementTree.fromstring(svg).iter("path") if f"stroke: var(--{role})" in e.get("style", "")]
    numbers = [re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path.get("d", "")) for path in own]
    return [[(float(x), float(y)) for x, y in line] for line in numbers if len(line) > 1][-1]


def test_curves_are_the_smoothed_numbers_to_scale() -> None:
    svg = line_chart([Line("a", range(7), NOISY)], x_label="step", y_label="loss", window=3)
    drawn, expected = curve(svg, "series-1"), running_mean(NOISY, 3)
    assert len(drawn) == len(expected)
    # Heights grow downwards; one scale and offset for all points.
    scale = (drawn[5][1] - drawn[0][1]) / (expected[5] - expected[0])
    assert scale < 0
    for (_, y), value in zip(drawn, expected, strict=True):
        assert y - drawn[0][1] == pytest.approx(scale * (value - expected[0]), abs=1e-3)


def test_an_interval_is_drawn_to_scale_and_only_where_there_is_one() -> None:
    svg = interval_chart([("a", Measured(1.0, 0.5, 3.0)), ("b", Measured(2.0))], x_label="distance")
    (left, _), (right, _) = curve(svg, "series-1")
    (point,) = [
        float(use.get("x", "")) for use in ElementTree.fromstring(svg).iter("use") if "series-1" in str(use.attrib)
    ]
    # 1 lies a fifth of the way from 0.5 to 3.
    assert (point - left) / (right - left) == pytest.approx(0.2, abs=1e-4)
    assert {"a", "b", "1.00", "2.00", "distance"} <= set(texts(svg))
    with pytest.raises(IndexError):
        curve(svg, "series-2")


def test_references_stand_where_they_are_measured() -> None:
    rows = [("a", Measured(0.5, -1.0, 1.0)), ("b", Measured(0.25, 0.0, 2.0))]
    svg = interval_chart(rows, x_label="gap", references=[("attacked", 0.0), ("clean", 1.0)])
    root = ElementTree.fromstring(svg)
    (left, _), (right, _) = curve(svg, "series-1")
    lines = [e.get("d", "") for e in root.iter("path") if "dasharray" in e.get("style", "")]
    found = sorted({float(match[1]) for d in lines if (match := re.match(r"M ([-\d.]+)", d))})
    # Of -1 to 1, 0 is the middle and 1 the end.
    assert found == pytest.approx([(left + right) / 2, right], abs=1e-3)
    assert {"attacked", "clean"} <= set(texts(svg))


def test_curves_with_intervals_have_bars_to_scale_beside_each_other() -> None:
    lines = [
        Line("a", [0, 100], [1.0, 3.0], [(0.0, 2.0), None]),
        Line("b", [0, 100], [1.0, 2.0], [(0.5, 1.5), (1.0, 3.0)]),
    ]
    svg = line_chart(lines, x_label="share", y_label="distance", points=True)
    bars = []
    for element in ElementTree.fromstring(svg).iter("path"):
        ends = [(float(x), float(y)) for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", element.get("d", ""))]
        style = element.get("style", "")
        if "series" in style and "opacity" in style and len(ends) == 2 and ends[0][0] == ends[1][0]:
            bars.append((ends[0][0], abs(ends[0][1] - ends[1][1])))
    assert len(bars) == 3, "one interval is not known"
    (x_a, whole), (x_b, half), (_, same) = bars
    assert half == pytest.approx(whole / 2, abs=1e-3) and same == pytest.approx(whole, abs=1e-3)
    assert 0 < x_b - x_a < 10, "they would hide each other"


def test_a_histogram_shows_the_share_of_each_group_in_each_bin() -> None:
    groups = [("few", [0.0, 4.0]), ("many", [0.5] * 3 + [3.5])]
    svg = histogram(groups, x_label="value", bins=4)
    # The outline of a group, up and down at the edges of its bins; the legend's sample is shorter.
    outlines = []
    for role in ("series-1", "series-2"):
        own = [e for e in ElementTree.fromstring(svg).iter("path") if f"stroke: var(--{role})" in e.get("style", "")]
        heights = max((re.findall(r"[ML] [-\d.]+ ([-\d.]+)", e.get("d", "")) for e in own), key=len)
        drawn = [float(y) for y in heights]
        outlines.append((max(drawn) - min(drawn), sum(y < max(drawn) - 1e-6 for y in drawn)))
    (few, corners), (many, _) = outlines
    assert many / few == pytest.approx(0.75 / 0.5, abs=1e-3) and corners == 4
    assert {"few (2)", "many (4)", "value", "share"} <= set(texts(svg))
    assert "few (2)" not in texts(histogram(groups[:1], x_label=""))
    assert "one value" in texts(histogram([("a", [2.0, 2.0])], x_label="one value"))


def test_long_names_leave_room_for_the_drawing(recwarn: pytest.WarningsRecorder) -> None:
    long = "x" * 500
    line_chart([Line(long, [1, 2], [1, 2])] * 4, x_label=long, y_label=long, reference=(long, 1))
    heat_map([[1.0]], [long], [long], x_label=long, low=0, high=1)
    interval_chart([(long, Measured(1.0))], x_label=long, references=[(long, 0.5), (long, 2.0)])
    histogram([(long, [1.0, 2.0]), (long, [1.0])], x_label=long)
    assert not recwarn.list, "matplotlib found no room"


def test_ids_differ_between_drawings_of_one_page(drawings: dict[str, str]) -> None:
    svg = drawings["lines"]
    one, two = place(svg, "c1-", "first"), place(svg, "c2-", 'se"cond')
    ids = [re.findall(r' id="([^"]+)"', text) for text in (one, two)]
    assert ids[0] and not set(ids[0]) & set(ids[1])
    for own, text in zip(ids, (one, two), strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(own)
        assert set(re.findall(r'href="#([^"]+)"', text)) <= set(own)
    assert ElementTree.fromstring(two).get("aria-label") == 'se"cond'


def test_the_users_settings_of_matplotlib_stay_and_do_not_matter(drawings: dict[str, str]) -> None:
    with matplotlib.rc_context({"svg.fonttype": "path", "axes.edgecolor": "#ff0000", "text.usetex": False}):
        mine = dict(matplotlib.rcParams)
        assert draw_all() == drawings
        assert dict(matplotlib.rcParams) == mine


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: line_chart([], x_label="", y_label=""), "lines: expected at least one, got none"),
        (lambda: line_chart([Line("a", [1], [1, 2])], x_label="", y_label=""), "in 'a', got 1 and 2"),
        (lambda: line_chart([Line("a", [], [])], x_label="", y_label=""), "in 'a', got 0 and 0"),
        (lambda: heat_map([[1.0]], ["a"], ["b", "c"], x_label="", low=0, high=1), "expected 1 rows of 2"),
        (lambda: heat_map([[1.0]], ["a"], ["b"], x_label="", low=1, high=1), "low < centre < high"),
        (lambda: interval_chart([], x_label=""), "rows: expected at least one"),
        (lambda: line_chart([Line("a", [1, 2], [1, 2], [None])], x_label="", y_label=""), "per x in 'a', got 1 for 2"),
        (lambda: histogram([], x_label=""), "groups: expected at least one, each with values, got none"),
        (lambda: histogram([("a", [1.0]), ("b", [])], x_label=""), "got 'a': 1, 'b': 0"),
    ],
)
def test_charts_say_what_does_not_fit(wrong: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wrong()
