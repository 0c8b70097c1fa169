"""image_grid: pixels stay what they are, labels stand beside them and not on them."""

from __future__ import annotations

import numpy as np
import pytest

from lordfast.data import image_grid


def tiles(rows: int, columns: int, size: int = 8) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return [[rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(columns)] for _ in range(rows)]


def test_without_labels_the_cells_hold_the_images() -> None:
    rows = tiles(2, 3)
    canvas = np.asarray(image_grid(rows, scale=2, pad=1))
    assert canvas.shape == (2 * 18, 3 * 18, 3)
    for r in range(2):
        for c in range(3):
            cell = canvas[r * 18 : (r + 1) * 18, c * 18 : (c + 1) * 18]
            np.testing.assert_array_equal(cell[1:-1:2, 1:-1:2], rows[r][c])
            np.testing.assert_array_equal(cell[2:-1:2, 2:-1:2], rows[r][c])
            assert (cell[0] == 255).all()
            assert (cell[:, 0] == 255).all()


def test_labels_are_drawn_beside_the_images() -> None:
    rows = tiles(2, 2, size=64)
    plain = np.asarray(image_grid(rows))
    canvas = np.asarray(image_grid(rows, labels=["plain LoRA", "LoRD"], column_labels=["clean", "attacked"]))
    height, width = plain.shape[:2]
    np.testing.assert_array_equal(canvas[-height:, -width:], plain)
    margin, head = canvas[-height:, :-width], canvas[:-height]
    ink = np.any(margin < 128, axis=(1, 2))
    assert ink[:68].any()
    assert ink[68:].any()
    # The longer label needs the room; the shorter one leaves some of it.
    assert (margin[:68] < 128).any(axis=2).sum() > (margin[68:] < 128).any(axis=2).sum() > 10
    for column in (0, 1):
        left = canvas.shape[1] - width + 68 * column
        assert (head[:, left : left + 68] < 128).any()


def test_long_column_labels_wrap_and_long_row_labels_grow_the_row() -> None:
    rows = tiles(1, 1, size=40)
    one_line = image_grid(rows, column_labels=["clean"])
    wrapped = image_grid(rows, column_labels=["clean but for a few words"])
    assert wrapped.width < 80
    assert wrapped.height > one_line.height
    many_lines = image_grid(rows, labels=["one\ntwo\nthree\nfour\nfive\nsix"])
    assert many_lines.height > image_grid(rows, labels=["one"]).height


def test_rows_of_different_length_and_images_of_different_size() -> None:
    small, large = np.zeros((4, 4, 3), np.uint8), np.full((8, 6, 3), 7, np.uint8)
    canvas = np.asarray(image_grid([[small, large], [large]], pad=0))
    assert canvas.shape == (16, 12, 3)
    assert (canvas[:4, :4] == 0).all()
    assert (canvas[4:8, :6] == 255).all()
    assert (canvas[:8, 6:] == 7).all()
    assert (canvas[8:, 6:] == 255).all()


def test_wrong_arguments() -> None:
    rows = tiles(2, 2)
    with pytest.raises(ValueError, match="rows: "):
        image_grid([])
    with pytest.raises(ValueError, match=r"labels: .*\(2\), got 1"):
        image_grid(rows, labels=["one"])
    with pytest.raises(ValueError, match=r"column_labels: .*\(2\), got 3"):
        image_grid(rows, column_labels=["a", "b", "c"])
    with pytest.raises(TypeError, match=r"rows\[1\]\[0\].*float64"):
        image_grid([rows[0], [rows[1][0] / 255.0]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="scale=0"):
        image_grid(rows, scale=0)
