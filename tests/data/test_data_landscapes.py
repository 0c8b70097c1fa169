"""Procedural landscapes: every attribute shows where it should, and captions say what shows."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lordfast.data import Scene, draw_landscape, draw_scene, landscape_caption, make_landscapes
from lordfast.data.landscapes import GROUNDS, PALETTES

PLAIN = Scene(
    palette="day",
    ground="snow",
    mountains=False,
    sun=False,
    trees=False,
    horizon=0.1,
    mountain_height=0.25,
    roughness=0.5,
    tint=(0.0, 0.0, 0.0),
    sun_x=0.1,
    sun_y=-0.5,
    sun_radius=0.15,
    tree_height=0.4,
    ridges=2,
)
SEEDS = range(8)
GRAMMAR = re.compile(
    r"a photo of a (?:landscape|(sunset|day|night|misty|autumn) landscape"
    r" with (mountains and )?(water|grass|snow)( and sun| and moon)?( and trees)?)"
)


def photos(**changes: Any) -> np.ndarray:
    """(8, 64, 64, 3) photos of PLAIN with changes."""
    scene = replace(PLAIN, **changes)
    return np.stack([draw_landscape(scene, np.random.default_rng(seed))[0] for seed in SEEDS]).astype(np.float64)


def test_scenes_follow_the_distribution() -> None:
    scenes = [draw_scene(np.random.default_rng(seed)) for seed in range(1500)]
    for name, probability in (("mountains", 0.75), ("sun", 0.5), ("trees", 0.5)):
        # Three standard deviations of a share among 1500 are below 0.04.
        assert abs(np.mean([getattr(scene, name) for scene in scenes]) - probability) < 0.04
    for name, values in (("palette", list(PALETTES)), ("ground", list(GROUNDS)), ("ridges", [2, 3])):
        counts = [sum(getattr(scene, name) == value for scene in scenes) for value in values]
        assert sum(counts) == 1500
        assert min(counts) > 0.7 * 1500 / len(values)


def test_same_generator_same_picture() -> None:
    scene = replace(PLAIN, mountains=True, sun=True, trees=True, ground="water")
    one, _ = draw_landscape(scene, np.random.default_rng(3))
    again, _ = draw_landscape(scene, np.random.default_rng(3))
    other, _ = draw_landscape(scene, np.random.default_rng(4))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).mean() > 0.02
    assert one.dtype == np.float32
    assert one.shape == (64, 64, 3)
    assert 0 <= one.min() < one.max() <= 1


@pytest.mark.parametrize("palette", sorted(PALETTES))
def test_the_sky_has_the_colours_of_its_palette(palette: str) -> None:
    images = photos(palette=palette)
    # The gradient leaves the overhead colour quickly, and clouds brighten it.
    top, low = images[:, :2].mean(axis=(0, 1, 2)), images[:, 28:32].mean(axis=(0, 1, 2))
    np.testing.assert_allclose(top, PALETTES[palette].zenith, atol=0.15)
    np.testing.assert_allclose(low, PALETTES[palette].horizon, atol=0.15)
    assert np.linalg.norm(top - PALETTES[palette].zenith) < np.linalg.norm(top - PALETTES[palette].horizon)


def test_night_is_dark_and_mist_is_grey() -> None:
    skies = {palette: photos(palette=palette)[:, :30] for palette in PALETTES}
    assert skies["night"].mean() < 0.3
    assert min(skies[palette].mean() for palette in PALETTES if palette != "night") > 0.5
    assert min(PALETTES, key=lambda palette: np.ptp(skies[palette], axis=3).mean()) == "misty"


def test_ground_kinds_differ_in_colour() -> None:
    grounds = {ground: photos(ground=ground)[:, 44:].mean(axis=(0, 1, 2)) for ground in GROUNDS}
    assert grounds["grass"].argmax() == 1
    assert grounds["grass"][1] > 1.5 * grounds["grass"][0]
    assert grounds["snow"].min() > 0.65
    assert grounds["water"].argmax() == 2
    autumn = photos(ground="grass", palette="autumn")[:, 44:].mean(axis=(0, 1, 2))
    assert autumn.argmax() == 0


def test_water_mirrors_what_stands_above_it() -> None:
    scene = replace(PLAIN, palette="sunset", mountains=True)
    correlations = {}
    for ground in ("water", "snow"):
        found = []
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            shore = round((scene.horizon + rng.normal(0, 0.03) + 1) / 2 * 64)
            image, _ = draw_landscape(replace(scene, ground=ground), np.random.default_rng(seed))
            # Rows near the shore are blended; a ridge's outline lies further up.
            above, below = image[shore - 20 : shore - 2], image[shore + 2 : shore + 20]
            found.append(np.corrcoef(above[::-1].ravel(), below.ravel())[0, 1])
        correlations[ground] = np.mean(found)
    assert correlations["water"] > 0.6
    assert correlations["water"] > correlations["snow"] + 0.3


@pytest.mark.parametrize(("palette", "color"), [("sunset", (1, 0.95, 0.7)), ("night", (0.95, 0.95, 0.9))])
def test_sun_and_moon_are_bright_discs(palette: str, color: tuple[float, float, float]) -> None:
    with_sun, without = photos(palette=palette, sun=True), photos(palette=palette)
    area = np.pi * PLAIN.sun_radius**2 / 4 * 64**2
    for image, empty in zip(with_sun[:, :30], without[:, :30], strict=True):
        disc = np.abs(image - color).max(axis=2) < 0.15
        assert 0.7 * area < disc.sum() < 1.3 * area
        assert (np.abs(empty - color).max(axis=2) < 0.15).sum() == 0
        rows, columns = np.nonzero(disc)
        # Around (sun_x, sun_y), which is pixel (35, 16), with a jitter of 3 and 2 pixels.
        assert abs(columns.mean() - 34.7) < 12
        assert abs(rows.mean() - 15.5) < 8


def test_mountains_rise_above_the_horizon_in_rock_colour() -> None:
    images, flat = photos(palette="sunset", mountains=True), photos(palette="sunset")
    rock = np.array(PALETTES["sunset"].rock)
    foot = images[:, 31:33].mean(axis=(0, 1, 2))
    assert np.abs(foot - rock).max() < 0.15
    assert np.abs(flat[:, 31:33].mean(axis=(0, 1, 2)) - rock).max() > 0.4
    np.testing.assert_allclose(images[:, :4].mean(axis=(0, 1, 2)), flat[:, :4].mean(axis=(0, 1, 2)), atol=0.05)


def test_mountains_wear_snow_by_day_and_not_at_sunset() -> None:
    def white_share(palette: str, mountains: bool) -> float:
        images = photos(palette=palette, mountains=mountains, horizon=0.3)[:, 16:36]
        return float(((images.min(axis=3) > 0.75) & (np.ptp(images, axis=3) < 0.1)).mean())

    assert white_share("day", mountains=True) > white_share("day", mountains=False) + 0.05
    assert white_share("sunset", mountains=True) == 0


@pytest.mark.parametrize(("palette", "channel"), [("day", 1), ("autumn", 0)])
def test_trees_stand_on_the_ground(palette: str, channel: int) -> None:
    with_trees, without = photos(palette=palette, trees=True), photos(palette=palette)
    for image, empty in zip(with_trees, without, strict=True):

        def colorful(pixels: np.ndarray) -> np.ndarray:
            others = np.delete(pixels, channel, axis=2).max(axis=2)
            return (pixels[..., channel] > 1.3 * others) & (pixels.max(axis=2) < 0.9)

        assert colorful(empty[36:]).sum() == 0
        assert 15 < colorful(image[20:]).sum() < 1200
        assert colorful(image[:12]).sum() == 0


# --- captions --------------------------------------------------------------------------------------------------------


def test_full_captions_name_what_shows() -> None:
    seen = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        _, attributes = draw_landscape(draw_scene(rng), rng)
        caption = landscape_caption(attributes)
        match = GRAMMAR.fullmatch(caption)
        assert match is not None, caption
        palette, mountains, ground, light, trees = match.groups()
        assert (palette, ground) == (attributes.palette, attributes.ground)
        assert [bool(mountains), bool(light), bool(trees)] == [attributes.mountains, attributes.sun, attributes.trees]
        if attributes.sun:
            assert light == (" and moon" if palette == "night" else " and sun")
        seen |= set(caption.split())
    assert {*PALETTES, *GROUNDS, "mountains", "sun", "moon", "trees"} <= seen


def test_vague_captions_in_their_share() -> None:
    _, attributes = draw_landscape(PLAIN, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    captions = [landscape_caption(attributes, rng) for _ in range(2000)]
    shares = {text: captions.count(text) / 2000 for text in set(captions)}
    full = "a photo of a day landscape with snow"
    assert shares == pytest.approx({"a photo of a landscape": 0.3, full: 0.7}, abs=0.04)
    assert landscape_caption(attributes) == full


def test_rare_token_stands_before_landscape() -> None:
    for item in make_landscapes(40, 1, token="sks", vary_captions=True):
        assert item.caption.count("sks") == 1
        assert GRAMMAR.fullmatch(item.caption.replace(" sks landscape", " landscape")), item.caption
