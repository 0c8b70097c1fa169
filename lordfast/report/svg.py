"""Matplotlib figures as SVG that lives in a page: no fixed colours or fonts, nothing that reaches outside itself.

Colours are drawn as placeholders, a colour for each role, and become the page's CSS variables, so that one drawing
follows light, dark and print.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

WIDTH = 330
"""Of every drawing, in its own units; the page scales it to about that many pixels, so that text keeps its size."""

SERIES = ["#0500a1", "#0500a2", "#0500a3", "#0500a4", "#0500a5", "#0500a6"]
INK, MUTED, RULE, HOT, COLD, ON_HEAT = "#0500b1", "#0500b2", "#0500b3", "#0500b4", "#0500b5", "#0500b6"
_VARIABLES = {
    **{colour: f"var(--series-{i})" for i, colour in enumerate(SERIES, start=1)},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    HOT: "var(--hot)",
    COLD: "var(--cold)",
    ON_HEAT: "var(--on-heat)",
}
_PLACEHOLDER = re.compile("|".join(_VARIABLES))
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lordfast",
    "text.parse_math": False,  # A dollar sign in a label is a dollar sign.
    "text.color": INK,
    "font.size": 10.5,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.5,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": RULE,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "axes.unicode_minus": True,
}


def draw(height: float, paint: Callable[[Figure], None]) -> str:
    """What `paint` puts on a figure of `WIDTH` x `height`, as an SVG element for the page."""
    # rcParams belong to the process: the user's are back afterwards.
    with rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        paint(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return _for_page(stream.getvalue())


def _for_page(document: str) -> str:
    root = ElementTree.fromstring(document)
    for parent in list(root.iter()):
        for child in list(parent):
            # The metadata name web addresses; the style sheet would reach every drawing on the page.
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', document))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            local = name.rpartition("}")[2]
            if local == "style":
                value = _PLACEHOLDER.sub(lambda match: _VARIABLES[match[0]], value)
                value = re.sub(r"font: (\S+px)[^;]*", r"font-size: \1", value)
                value = re.sub(r"font-family:[^;]*;?", "", value)
            if local != "id" or value in used:
                element.set(local, value)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("stroke-linejoin", "round")
    return ElementTree.tostring(root, encoding="unicode")


def place(svg: str, prefix: str, label: str) -> str:
    """`svg` with ids of its own among the drawings of one page, and `label` for those who can't see it."""
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "id":
                element.set(name, prefix + value)
            elif name == "href":
                element.set(name, value.replace("#", f"#{prefix}", 1))
            elif "url(#" in value:
                element.set(name, value.replace("url(#", f"url(#{prefix}"))
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")
