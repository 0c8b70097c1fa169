"""Procedural landscapes: every attribute shows where it should, and captions say what shows."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lordfast.data import Scene, draw_landscape, draw_scene, landscape_caption, make_landscapes
from lordfast.data.landscapes import BANK, GROUNDS, SEASONS, TIMES

PLAIN = Scene(
    time="day",
    season="summer",
    ground="meadow",
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
    r"a photo of (?:a landscape|(?:a (spring|summer|winter)|an (autumn)) landscape at (dawn|day|sunset|night)"
    r"(?: with (mountains and )?(lake|meadow)( and sun| and moon)?( and trees)?)?)"
)


def photos(**changes: Any) -> np.ndarray:
    """(8, 64, 64, 3) photos of PLAIN with changes."""
    scene = replace(PLAIN, **changes)
    return np.stack([draw_landscape(scene, np.random.default_rng(seed))[0] for seed in SEEDS]).astype(np.float64)


def exposed_like(images: np.ndarray, others: np.ndarray, rows: slice) -> np.ndarray:
    """`images` as bright as `others` in `rows`: the exposure is drawn last, after what a changed scene draws."""
    ratio = others[:, rows].mean(axis=(1, 2, 3)) / images[:, rows].mean(axis=(1, 2, 3))
    return images * ratio[:, None, None, None]


def test_scenes_follow_the_distribution() -> None:
    scenes = [draw_scene(np.random.default_rng(seed)) for seed in range(1500)]
    for name, probability in (("mountains", 0.7), ("sun", 0.5), ("trees", 0.6)):
        # Three standard deviations of a share among 1500 are below 0.04.
        assert abs(np.mean([getattr(scene, name) for scene in scenes]) - probability) < 0.04
    for name, values in (
        ("time", list(TIMES)),
        ("season", list(SEASONS)),
        ("ground", list(GROUNDS)),
        ("ridges", [2, 3]),
    ):
        counts = [sum(getattr(scene, name) == value for scene in scenes) for value in values]
        assert sum(counts) == 1500
        assert min(counts) > 0.7 * 1500 / len(values)


def test_same_generator_same_picture() -> None:
    scene = replace(PLAIN, mountains=True, sun=True, trees=True, ground="lake")
    one, _ = draw_landscape(scene, np.random.default_rng(3))
    again, _ = draw_landscape(scene, np.random.default_rng(3))
    other, _ = draw_landscape(scene, np.random.default_rng(4))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).mean() > 0.02
    assert one.dtype == np.float32
    assert one.shape == (64, 64, 3)
    assert 0 <= one.min() < one.max() <= 1


@pytest.mark.parametrize("size", [32, 128])
def test_another_size_is_the_same_picture(size: int) -> None:
    for seed in SEEDS:
        scene = draw_scene(np.random.default_rng(seed))
        small, shown = draw_landscape(scene, np.random.default_rng(seed))
        other, shown_there = draw_landscape(scene, np.random.default_rng(seed), size)
        assert other.shape == (size, size, 3)
        assert shown == shown_there
        coarse, fine = sorted((small, other), key=len)
        halved = fine.reshape(len(coarse), 2, len(coarse), 2, 3).mean(axis=(1, 3))
        # Grain has a deviation of 0.006 in one and half of that in the other; edges are sharper in the larger one, and
        # a lake's shore lies on the nearest row.
        assert np.median(np.abs(halved - coarse)) < 0.008
        assert np.abs(halved - coarse).mean() < 0.02


@pytest.mark.parametrize("size", [15, 0, -64])
def test_sizes_at_which_nothing_shows(size: int) -> None:
    with pytest.raises(ValueError, match=rf"size: expected at least 16 pixels, got {size}"):
        draw_landscape(PLAIN, np.random.default_rng(0), size)


@pytest.mark.parametrize("time", sorted(TIMES))
def test_the_sky_has_the_colours_of_its_time(time: str) -> None:
    images = photos(time=time)
    # The gradient leaves the overhead colour quickly, and clouds brighten it.
    top, low = images[:, :2].mean(axis=(0, 1, 2)), images[:, 28:32].mean(axis=(0, 1, 2))
    np.testing.assert_allclose(top, TIMES[time].zenith, atol=0.15)
    np.testing.assert_allclose(low, TIMES[time].horizon, atol=0.15)
    assert np.linalg.norm(top - TIMES[time].zenith) < np.linalg.norm(top - TIMES[time].horizon)


def test_night_is_dark_and_dawn_is_pale() -> None:
    skies = {time: photos(time=time)[:, :30] for time in TIMES}
    assert skies["night"].mean() < 0.3
    assert min(skies[time].mean() for time in TIMES if time != "night") > 0.5
    bright = [time for time in TIMES if time != "night"]
    assert min(bright, key=lambda time: np.ptp(skies[time], axis=3).mean()) == "dawn"


def lit(color: tuple[float, float, float], time: str) -> np.ndarray:
    """The colour of what stands on the ground at this time."""
    return np.array(color) * (0.3 + 0.7 * np.mean(TIMES[time].horizon))


@pytest.mark.parametrize("time", sorted(TIMES))
@pytest.mark.parametrize("season", sorted(SEASONS))
def test_the_meadow_has_the_colour_of_its_season(season: str, time: str) -> None:
    meadow = photos(season=season, time=time)[:, 40:60].mean(axis=(0, 1, 2))
    expected = lit(SEASONS[season].meadow, time)
    # Darker towards the viewer by up to a quarter.
    np.testing.assert_allclose(meadow / meadow.sum(), expected / expected.sum(), atol=0.02)
    assert 0.75 < meadow.sum() / expected.sum() < 1.0


@pytest.mark.parametrize("season", sorted(SEASONS))
def test_seasons_show_at_the_bank_of_a_lake(season: str) -> None:
    lake = photos(season=season, ground="lake")
    bank = lake[:, 60:].mean(axis=(0, 1, 2))
    expected = lit(SEASONS[season].meadow, "day")
    np.testing.assert_allclose(bank / bank.sum(), expected / expected.sum(), atol=0.02)
    # The water before it has the same colour in every season.
    row = round((BANK - 0.1 + 1) / 2 * 64)
    np.testing.assert_allclose(lake[:, 40:row], photos(ground="lake")[:, 40:row], atol=1e-6)


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("season", sorted(SEASONS))
def test_trees_have_the_leaves_of_their_season_and_stand_on_the_ground(season: str, ground: str) -> None:
    without = photos(season=season, ground=ground)
    with_trees = exposed_like(photos(season=season, ground=ground, trees=True), without, slice(4))
    found = []
    for image, empty in zip(with_trees, without, strict=True):
        mask = np.abs(image - empty).max(axis=2) > 0.08
        assert 40 < mask.sum() < 1500
        assert mask[:12].sum() == 0
        found.append(image[mask])
    colors = np.concatenate(found)
    leaves = lit(SEASONS[season].leaves, "day")
    # A tree is mostly crown; in winter snow lies on it and mixes with the leaves.
    assert (np.abs(colors - leaves).max(axis=1) < 0.2).mean() > 0.5
    paler = colors.mean(axis=0) - leaves
    if season == "winter":
        assert paler.min() > 0.1
    else:
        assert paler.max() < 0.08


def test_no_tree_grows_out_of_the_lake() -> None:
    lake, meadow = (
        np.mean(
            np.abs(photos(ground=ground, trees=True, horizon=-0.1) - photos(ground=ground, horizon=-0.1)) > 0.08,
            axis=(0, 2, 3),
        )
        for ground in ("lake", "meadow")
    )
    # Feet lie below the bank's line, so more of the trees is at the bottom than on a meadow that begins further up.
    rows = np.arange(64)
    assert (rows * lake).sum() / lake.sum() > (rows * meadow).sum() / meadow.sum() + 5


def test_a_lake_mirrors_what_stands_above_it() -> None:
    scene = replace(PLAIN, time="sunset", mountains=True)
    correlations = {}
    for ground in GROUNDS:
        found = []
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            shore = round((scene.horizon + rng.normal(0, 0.03) + 1) / 2 * 64)
            image, _ = draw_landscape(replace(scene, ground=ground), np.random.default_rng(seed))
            # Rows near the shore are blended; a ridge's outline lies further up; the bank begins at row 53.
            above, below = image[shore - 14 : shore - 2], image[shore + 2 : shore + 14]
            found.append(np.corrcoef(above[::-1].ravel(), below.ravel())[0, 1])
        correlations[ground] = np.mean(found)
    assert correlations["lake"] > 0.6
    assert correlations["lake"] > correlations["meadow"] + 0.3


@pytest.mark.parametrize("time", sorted(TIMES))
def test_sun_and_moon_are_bright_discs(time: str) -> None:
    without = photos(time=time)
    with_sun = exposed_like(photos(time=time, sun=True), without, slice(50, 64))
    area = np.pi * PLAIN.sun_radius**2 / 4 * 64**2
    color = np.array(TIMES[time].sun)
    for image, empty in zip(with_sun[:, :30], without[:, :30], strict=True):
        # At dawn the sky is nearly as pale as the sun, so that part of the glow counts too.
        changed = np.abs(image - empty).max(axis=2) > 0.1
        disc = (np.abs(image - color).max(axis=2) < 0.15) & changed
        assert 0.7 * area < disc.sum() < (1.3 * area if time != "dawn" else 4 * area)
        rows, columns = np.nonzero(disc)
        # Around (sun_x, sun_y), which is pixel (35, 16), with a jitter of 3 and 2 pixels.
        assert abs(columns.mean() - 34.7) < 12
        assert abs(rows.mean() - 15.5) < 8


def test_mountains_rise_above_the_horizon_in_rock_colour() -> None:
    images, flat = photos(time="sunset", mountains=True), photos(time="sunset")
    rock = np.array(TIMES["sunset"].rock)
    foot = images[:, 31:33].mean(axis=(0, 1, 2))
    assert np.abs(foot - rock).max() < 0.15
    assert np.abs(flat[:, 31:33].mean(axis=(0, 1, 2)) - rock).max() > 0.4
    np.testing.assert_allclose(images[:, :4].mean(axis=(0, 1, 2)), flat[:, :4].mean(axis=(0, 1, 2)), atol=0.05)


def test_mountains_wear_snow_in_winter_alone() -> None:
    def white_share(season: str, mountains: bool) -> float:
        images = photos(season=season, mountains=mountains, horizon=0.3)[:, 16:36]
        return float(((images.min(axis=3) > 0.72) & (np.ptp(images, axis=3) < 0.1)).mean())

    assert white_share("winter", mountains=True) > white_share("winter", mountains=False) + 0.05
    for season in set(SEASONS) - {"winter"}:
        assert white_share(season, mountains=True) <= white_share(season, mountains=False)


# --- captions --------------------------------------------------------------------------------------------------------


def test_full_captions_name_what_shows() -> None:
    seen = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        _, attributes = draw_landscape(draw_scene(rng), rng)
        caption = landscape_caption(attributes)
        match = GRAMMAR.fullmatch(caption)
        assert match is not None, caption
        season, autumn, time, mountains, ground, light, trees = match.groups()
        assert (season or autumn, time, ground) == (attributes.season, attributes.time, attributes.ground)
        assert [bool(mountains), bool(light), bool(trees)] == [attributes.mountains, attributes.sun, attributes.trees]
        if attributes.sun:
            assert light == (" and moon" if time == "night" else " and sun")
        seen |= set(caption.split())
    assert {*TIMES, *SEASONS, *GROUNDS, "mountains", "sun", "moon", "trees"} <= seen


def test_vague_captions_in_their_shares() -> None:
    _, attributes = draw_landscape(PLAIN, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    captions = [landscape_caption(attributes, rng) for _ in range(2000)]
    shares = {text: captions.count(text) / 2000 for text in set(captions)}
    short = "a photo of a summer landscape at day"
    expected = {"a photo of a landscape": 0.15, short: 0.1, f"{short} with meadow": 0.75}
    # Three standard deviations of a share among 2000 are below 0.03.
    assert shares == pytest.approx(expected, abs=0.03)
    assert landscape_caption(attributes) == f"{short} with meadow"


def test_rare_token_stands_before_landscape() -> None:
    for item in make_landscapes(40, 1, token="sks", vary_captions=True):
        assert item.caption.count("sks") == 1
        assert GRAMMAR.fullmatch(item.caption.replace(" sks landscape", " landscape")), item.caption
