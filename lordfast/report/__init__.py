"""One self-contained HTML page per run: blocks to fill it with, charts, and the template.

May import data and files; imported by demo and the command line.
"""

from lordfast.report.blocks import (
    Block,
    Chart,
    Charts,
    Code,
    Column,
    Details,
    Facts,
    Gallery,
    Note,
    Page,
    Paragraph,
    Picture,
    PictureRow,
    Section,
    Table,
    Tile,
    Tiles,
)
from lordfast.report.charts import Line, heat_map, histogram, interval_chart, line_chart, running_mean
from lordfast.report.numbers import Measured, judge
from lordfast.report.page import render_page, write_page

__all__ = [
    "Block",
    "Chart",
    "Charts",
    "Code",
    "Column",
    "Details",
    "Facts",
    "Gallery",
    "Line",
    "Measured",
    "Note",
    "Page",
    "Paragraph",
    "Picture",
    "PictureRow",
    "Section",
    "Table",
    "Tile",
    "Tiles",
    "heat_map",
    "histogram",
    "interval_chart",
    "judge",
    "line_chart",
    "render_page",
    "running_mean",
    "write_page",
]
