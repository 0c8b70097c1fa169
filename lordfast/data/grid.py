"""Rows of images with labels as one picture, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lordfast.data.images import Uint8Image, check_image

FONT_SIZE = 13
LABEL_GAP = 6
BACKGROUND = (255, 255, 255)
INK = (20, 20, 20)

# Pillow returns its scalable font, or a bitmap one where it was built without FreeType.
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def image_grid(
    rows: Sequence[Sequence[Uint8Image]],
    *,
    labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    scale: int = 1,
    pad: int = 2,
) -> Image.Image:
    """Lay images out in rows, with labels at the left of the rows and above the columns.

    Args:
        rows: lists of uint8 (H, W, 3); rows may differ in length and images in size (cells take the largest).
        labels: one text per row.
        column_labels: one text per column, wrapped to the column's width.
        scale: every pixel becomes scale x scale, without smoothing.
        pad: white pixels around each image.

    Returns:
        An RGB PIL image.
    """
    if not rows or not any(len(row) for row in rows):
        raise ValueError("rows: expected at least one image, got none")
    if scale < 1 or pad < 0:
        raise ValueError(f"expected scale >= 1 and pad >= 0, got scale={scale}, pad={pad}")
    columns = max(len(row) for row in rows)
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"labels: expected one per row ({len(rows)}), got {len(labels)}")
    if column_labels is not None and len(column_labels) != columns:
        raise ValueError(f"column_labels: expected one per column ({columns}), got {len(column_labels)}")
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            check_image(image, f"rows[{r}][{c}]")

    font: Font = ImageFont.load_default(FONT_SIZE)
    cell_height = max(image.shape[0] for row in rows for image in row) * scale + 2 * pad
    cell_width = max(image.shape[1] for row in rows for image in row) * scale + 2 * pad
    line_height = _line_height(font)
    row_labels = [_wrap(text, font, float("inf")) for text in labels or []]
    heads = [_wrap(text, font, cell_width - 2 * pad) for text in column_labels or []]
    # A label of several lines, or one taller than a small image, must not run into the next row.
    row_height = max([cell_height, *(len(lines) * line_height for lines in row_labels)])
    column_width = max([cell_width, *(_text_width(line, font) + 2 * pad for lines in heads for line in lines)])
    left = max([0, *(_text_width(line, font) + 2 * LABEL_GAP for lines in row_labels for line in lines)])
    top = max([0, *(len(lines) * line_height + LABEL_GAP for lines in heads)])

    canvas = Image.new("RGB", (left + columns * column_width, top + len(rows) * row_height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            enlarged = np.repeat(np.repeat(image, scale, axis=0), scale, axis=1)
            canvas.paste(Image.fromarray(enlarged), (left + c * column_width + pad, top + r * row_height + pad))
    for r, lines in enumerate(row_labels):
        y = top + r * row_height + (row_height - len(lines) * line_height) // 2
        for i, line in enumerate(lines):
            draw.text((LABEL_GAP, y + i * line_height), line, fill=INK, font=font)
    for c, lines in enumerate(heads):
        y = top - LABEL_GAP // 2 - len(lines) * line_height
        for i, line in enumerate(lines):
            draw.text((left + c * column_width + pad, y + i * line_height), line, fill=INK, font=font)
    return canvas


def _text_width(text: str, font: Font) -> int:
    return int(np.ceil(font.getlength(text)))


def _line_height(font: Font) -> int:
    _, _, _, bottom = font.getbbox("Agjpq|")
    return int(np.ceil(bottom)) + 2


def _wrap(text: str, font: Font, width: float) -> list[str]:
    """Break at given line ends, and between words where a line would be wider than ``width``."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        current = ""
        for word in paragraph.split(" "):
            longer = f"{current} {word}" if current else word
            if current and _text_width(longer, font) > width:
                lines.append(current)
                current = word
            else:
                current = longer
        lines.append(current)
    return lines
