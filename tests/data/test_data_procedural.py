"""Seeded sets of procedural images: golden values, independence of the images, folders on disk."""

from __future__ import annotations

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
        ("a photo of a surprised person with bald head", [[180.8, 80.5, 48.7], [206.0, 82.5, 56.6]]),
        ("a photo of a person with bald head and glasses and beard", [[141.7, 150.8, 141.2], [141.5, 127.6, 137.4]]),
        ("a photo of a surprised person with short gray hair and hat", [[59.5, 178.4, 199.3], [92.3, 148.6, 176.6]]),
        ("a photo of a person with short black hair", [[24.1, 98.9, 100.5], [118.5, 164.9, 122.0]]),
    ],
    make_landscapes: [
        (
            "a photo of a misty landscape with mountains and grass and sun",
            [[194.7, 213.1, 214.8], [59.6, 106.6, 48.3]],
        ),
        (
            "a photo of a day landscape with mountains and water and sun",
            [[141.5, 172.6, 206.9], [106.3, 133.0, 160.6]],
        ),
        (
            "a photo of a misty landscape with mountains and snow and sun and trees",
            [[206.3, 207.9, 224.6], [186.0, 191.7, 198.5]],
        ),
        (
            "a photo of a night landscape with mountains and water and moon",
            [[36.6, 46.9, 87.9], [26.0, 37.4, 71.8]],
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
    assert 9 < same < 30


@both_kinds
def test_seeds_and_pictures_of_a_set_differ(make: Maker) -> None:
    pictures = [item.image.astype(int) for item in make(5, 0) + make(5, 1)]
    for i in range(10):
        for j in range(i):
            assert np.abs(pictures[i] - pictures[j]).mean() > 5


@pytest.mark.parametrize(("make", "draw"), [(make_faces, draw_identity), (make_landscapes, draw_scene)])
def test_a_given_subject_stays(make: Maker, draw: Callable[[np.random.Generator], Any]) -> None:
    items = make(4, 3, draw(np.random.default_rng(9)), token="sks")
    assert len({item.caption.replace("smiling ", "").replace("surprised ", "") for item in items}) == 1
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
