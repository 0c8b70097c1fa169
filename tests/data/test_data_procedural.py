"""Seeded sets of procedural images: golden values, independence of the images, folders on disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lordfast.data import (
    ProceduralImage,
    draw_identity,
    draw_scene,
    list_images,
    load_image,
    make_faces,
    make_landscapes,
    write_folder,
)

Maker = Callable[..., list[ProceduralImage]]
both_kinds = pytest.mark.parametrize("make", [make_faces, make_landscapes])

# Captions and the mean colours of the upper and lower half of each picture. The embedded model was trained on these
# pictures: a change here means that it no longer fits its data. Half a level leaves room for other maths libraries.
GOLDEN: dict[Maker, list[tuple[str, list[list[float]]]]] = {
    make_faces: [
        (
            "a photo of a smiling person with short red hair and tan skin on a purple background",
            [[115.8, 70.3, 116.7], [116.0, 73.6, 127.4]],
        ),
        (
            "a photo of a smiling person with bald head and medium skin and glasses and beard on a orange background",
            [[234.5, 157.4, 65.2], [163.9, 96.3, 50.5]],
        ),
        (
            "a photo of a person with long blue hair and dark skin and hat on a white background",
            [[215.5, 207.1, 178.2], [116.0, 118.5, 156.5]],
        ),
        (
            "a photo of a surprised person with short black hair and tan skin on a white background",
            [[162.0, 162.4, 152.4], [162.3, 174.1, 145.9]],
        ),
    ],
    make_landscapes: [
        (
            "a photo of an autumn landscape at sunset with mountains and lake and trees",
            [[130.0, 75.9, 85.1], [94.6, 60.1, 50.0]],
        ),
        (
            "a photo of a spring landscape at day with mountains and lake and trees",
            [[133.7, 181.4, 239.1], [108.3, 130.1, 112.8]],
        ),
        (
            "a photo of a winter landscape at night with mountains and meadow and moon and trees",
            [[36.3, 47.1, 69.1], [76.0, 79.0, 84.5]],
        ),
        (
            "a photo of a spring landscape at sunset with mountains and lake",
            [[177.8, 114.1, 101.3], [117.3, 98.6, 63.9]],
        ),
    ],
}


@both_kinds
def test_golden_pictures(make: Maker) -> None:
    for item, (caption, halves) in zip(make(4, 2024), GOLDEN[make], strict=True):
        assert item.image.dtype == np.uint8
        assert item.caption == caption
        measured = item.image.reshape(2, 32, 64, 3).astype(float).mean(axis=(1, 2))
        np.testing.assert_allclose(measured, halves, atol=0.5)


@both_kinds
def test_size_of_the_pictures(make: Maker) -> None:
    small, large = make(3, 5), make(3, 5, size=128)
    for one, other in zip(small, large, strict=True):
        assert other.image.shape == (128, 128, 3)
        assert (one.caption, one.attributes) == (other.caption, other.attributes)
        halved = other.image.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(halved - one.image).mean() < 5


@both_kinds
def test_first_pictures_do_not_depend_on_how_many(make: Maker) -> None:
    few, many = make(2, 5), make(6, 5)
    for one, other in zip(few, many[:2], strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert (one.caption, one.attributes) == (other.caption, other.attributes)


@both_kinds
def test_varied_captions_leave_the_pictures_alone(make: Maker) -> None:
    full, varied = make(30, 5), make(30, 5, vary_captions=True)
    for one, other in zip(full, varied, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
    same = sum(one.caption == other.caption for one, other in zip(full, varied, strict=True))
    # Of the faces' captions, 37 % keep every part.
    assert 4 < same < 30


@both_kinds
def test_seeds_and_pictures_of_a_set_differ(make: Maker) -> None:
    pictures = [item.image.astype(int) for item in make(5, 0) + make(5, 1)]
    for i in range(10):
        for j in range(i):
            assert np.abs(pictures[i] - pictures[j]).mean() > 5


@pytest.mark.parametrize(("make", "draw"), [(make_faces, draw_identity), (make_landscapes, draw_scene)])
def test_a_given_subject_stays(make: Maker, draw: Callable[[np.random.Generator], Any]) -> None:
    items = make(4, 3, draw(np.random.default_rng(9)), token="sks")
    # The wall and the expression are the photo's.
    rest = [re.sub(r"smiling |surprised | on a \w+ background", "", item.caption) for item in items]
    assert len(set(rest)) == 1
    assert len({item.image.tobytes() for item in items}) == 4
    assert all(" sks " in item.caption for item in items)


@both_kinds
def test_none_and_fewer(make: Maker) -> None:
    assert make(0, 1) == []
    with pytest.raises(ValueError, match=r"n: .*-1"):
        make(-1, 1)


@both_kinds
def test_folder_round_trip(make: Maker, tmp_path: Path) -> None:
    items = make(3, 0)
    paths = write_folder(items, tmp_path / "set")
    records = list_images(tmp_path / "set", captions="required")
    assert [record.path for record in records] == paths
    assert [record.caption for record in records] == [item.caption for item in items]
    for record, item in zip(records, items, strict=True):
        np.testing.assert_array_equal(load_image(record.path), item.image)
    assert len(list((tmp_path / "set").iterdir())) == 6
