"""Procedural faces: every attribute shows where it should, and captions say what shows."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lordfast.data import FaceIdentity, draw_face, draw_identity, face_caption, make_faces
from lordfast.data.faces import CLOTH_COLORS, EXPRESSIONS, EYE_COLORS, HAIR_COLORS, HAIR_STYLES, SKIN_TONES

# A plain person of middling proportions, so that a test changes one thing at a time.
PLAIN = FaceIdentity(
    skin_tone=1.0,
    hair_color="brown",
    hair_tint=(0.0, 0.0, 0.0),
    hair_style="short",
    eye_color=0,
    face_width=0.46,
    face_height=0.58,
    eye_spacing=0.19,
    eye_radius=0.085,
    brow_thickness=0.03,
    nose_size=0.1,
    mouth_width=0.18,
    lip_redness=0.6,
    glasses=False,
    beard=False,
    hat=False,
    shirt=3,
    hat_color=1,
)
SEEDS = range(8)
GRAMMAR = re.compile(
    r"a photo of a (?:(smiling|surprised) )?person"
    r"(?: with (bald head|(?:short|long|curly|bob) (?:black|brown|blond|red|gray|blue) hair)"
    r"( and glasses)?( and beard)?( and hat)?)?"
)


def photo(seed: int, expression: str = "neutral", **changes: Any) -> np.ndarray:
    """The same photo (pose, light, grain) of PLAIN with changes: no attribute consumes random numbers."""
    image, _ = draw_face(replace(PLAIN, **changes), np.random.default_rng(seed), expression)
    return image.astype(np.float64)


def changed(one: np.ndarray, other: np.ndarray, threshold: float = 0.05) -> np.ndarray:
    return np.abs(one - other).max(axis=2) > threshold


def rows_of(mask: np.ndarray) -> float:
    return float(np.nonzero(mask)[0].mean())


def test_identity_follows_the_distribution() -> None:
    people = [draw_identity(np.random.default_rng(seed)) for seed in range(1500)]
    for name, probability in (("glasses", 0.35), ("beard", 0.3), ("hat", 0.18)):
        share = np.mean([getattr(person, name) for person in people])
        # Three standard deviations of a share among 1500 are below 0.04.
        assert abs(share - probability) < 0.04
    for name, values in (
        ("hair_color", list(HAIR_COLORS)),
        ("hair_style", list(HAIR_STYLES)),
        ("eye_color", list(range(len(EYE_COLORS)))),
        ("shirt", list(range(len(CLOTH_COLORS)))),
    ):
        counts = [sum(getattr(person, name) == value for person in people) for value in values]
        assert sum(counts) == 1500
        assert min(counts) > 0.7 * 1500 / len(values)
    tones = np.array([person.skin_tone for person in people])
    assert 0 <= tones.min() < 0.1
    assert 4.9 < tones.max() <= len(SKIN_TONES) - 1


def test_one_identity_gives_different_photos_of_the_same_person() -> None:
    images = np.stack([item.image for item in make_faces(6, 0, PLAIN)]).astype(float)
    for index in range(1, 6):
        assert np.abs(images[index] - images[0]).mean() > 10
    shown = [draw_face(PLAIN, np.random.default_rng(seed))[1] for seed in range(20)]
    assert len({replace(attributes, expression="neutral") for attributes in shown}) == 1
    assert {attributes.expression for attributes in shown} == set(EXPRESSIONS)


def test_same_generator_same_picture() -> None:
    one, _ = draw_face(PLAIN, np.random.default_rng(3))
    again, _ = draw_face(PLAIN, np.random.default_rng(3))
    np.testing.assert_array_equal(one, again)
    assert one.dtype == np.float32
    assert one.shape == (64, 64, 3)
    assert 0 <= one.min() < one.max() <= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_glasses_darken_rings_around_the_eyes(seed: int) -> None:
    bare, glasses = photo(seed), photo(seed, glasses=True)
    mask = changed(bare, glasses)
    assert 40 < mask.sum() < 400
    # Only frames: what changes gets dark, and lies at the height of the eyes, just above the middle.
    assert glasses[mask].mean() < 0.7 * bare[mask].mean()
    assert 20 < rows_of(mask) < 42
    columns = np.nonzero(mask.any(axis=0))[0]
    assert 15 < np.ptp(columns) < 35


@pytest.mark.parametrize("seed", SEEDS)
def test_hat_covers_the_top_of_the_head_in_its_colour(seed: int) -> None:
    bare, hat = photo(seed), photo(seed, hat=True)
    mask = changed(bare, hat)
    assert 150 < mask.sum() < 1200
    assert rows_of(mask) < 26
    ratio = hat[mask].mean(axis=0) / hat[mask].mean()
    expected = CLOTH_COLORS[PLAIN.hat_color] / CLOTH_COLORS[PLAIN.hat_color].mean()
    np.testing.assert_allclose(ratio, expected, atol=0.2)


@pytest.mark.parametrize("seed", SEEDS)
def test_beard_has_the_hair_colour_and_sits_low(seed: int) -> None:
    bare, beard = photo(seed), photo(seed, beard=True)
    mask = changed(bare, beard, 0.15)
    assert 60 < mask.sum() < 900
    assert rows_of(mask) > rows_of(changed(bare, photo(seed, glasses=True))) + 4
    assert beard[mask].mean() < 0.75 * bare[mask].mean()


@pytest.mark.parametrize("color", sorted(HAIR_COLORS))
def test_hair_pixels_have_the_hair_colour(color: str) -> None:
    other = "black" if color == "blond" else "blond"
    for seed in SEEDS:
        image, reference = photo(seed, hair_color=color), photo(seed, hair_color=other)
        hair = changed(image, reference, 0.1)
        assert hair.sum() > 100
        # Light and texture change the brightness by up to 30 %, hardly the mean.
        np.testing.assert_allclose(image[hair].mean(axis=0), HAIR_COLORS[color], atol=0.17)


def test_hair_styles_differ_in_how_much_hair_there_is() -> None:
    def amount(style: str) -> float:
        return float(
            np.mean(
                [
                    changed(photo(s, hair_style=style, hair_color="blue"), photo(s, hair_style=style), 0.1).sum()
                    for s in SEEDS
                ]
            )
        )

    amounts = {style: amount(style) for style in HAIR_STYLES}
    assert amounts["bald"] < 0.3 * amounts["short"]  # eyebrows remain
    assert amounts["short"] < amounts["curly"] < amounts["long"]
    assert amounts["short"] < amounts["bob"] < amounts["long"]


@pytest.mark.parametrize("seed", SEEDS)
def test_expressions_show_at_mouth_and_eyes(seed: int) -> None:
    neutral, smiling, surprised = (photo(seed, expression) for expression in EXPRESSIONS)
    smile = changed(neutral, smiling)
    assert rows_of(smile) > 36
    # Teeth: more nearly white pixels than the lips of a neutral face have.
    assert smiling[smile].min(axis=1).max() > neutral[smile].min(axis=1).max() + 0.1
    surprise = changed(neutral, surprised)
    lower, upper = surprise[38:], surprise[:32]
    assert lower.sum() > 15
    assert upper.sum() > 15
    mouth = np.where(lower[..., None], surprised[38:], 1).sum(axis=2)
    assert mouth.min() < 0.9  # the dark of the open mouth


def test_eye_colour_shows_in_the_eyes() -> None:
    for seed in SEEDS:
        brown, blue = photo(seed, eye_color=0), photo(seed, eye_color=1)
        iris = changed(brown, blue)
        assert 4 < iris.sum() < 60
        assert 20 < rows_of(iris) < 42
        # Blurred with the white and the pupil, so only the difference of the two colours is clean.
        shift = (blue[iris] - brown[iris]).mean(axis=0)
        expected = EYE_COLORS[1] - EYE_COLORS[0]
        np.testing.assert_allclose(shift / shift[2], expected / expected[2], atol=0.15)


def test_skin_tone_darkens_the_face() -> None:
    brightness = [np.mean([photo(s, skin_tone=float(t))[30:40, 28:36].mean() for s in SEEDS]) for t in range(6)]
    assert (np.diff(brightness) < -0.02).all()


def test_shirt_shows_at_the_bottom() -> None:
    for index, color in enumerate(CLOTH_COLORS):
        rows = np.stack([photo(seed, shirt=index)[61:, 26:38] for seed in SEEDS])
        np.testing.assert_allclose(rows.mean(axis=(0, 1, 2)), color, atol=0.13)


def test_unknown_expression() -> None:
    with pytest.raises(ValueError, match=r"expression: expected one of neutral, smiling, surprised, got 'angry'"):
        draw_face(PLAIN, np.random.default_rng(0), "angry")


# --- captions --------------------------------------------------------------------------------------------------------


def test_full_captions_name_what_shows() -> None:
    seen = set()
    for seed in range(300):
        rng = np.random.default_rng(seed)
        _, attributes = draw_face(draw_identity(rng), rng)
        caption = face_caption(attributes)
        match = GRAMMAR.fullmatch(caption)
        assert match is not None, caption
        expression, hair, glasses, beard, hat = match.groups()
        assert (expression or "neutral") == attributes.expression
        bald = attributes.hair_style == "bald"
        assert hair == ("bald head" if bald else f"{attributes.hair_style} {attributes.hair_color} hair")
        assert [bool(glasses), bool(beard), bool(hat)] == [attributes.glasses, attributes.beard, attributes.hat]
        seen |= set(caption.split())
    assert {*HAIR_COLORS, *HAIR_STYLES, "smiling", "surprised", "glasses", "beard", "hat"} <= seen


def test_vague_captions_in_their_shares() -> None:
    _, attributes = draw_face(replace(PLAIN, glasses=True), np.random.default_rng(0), "smiling")
    rng = np.random.default_rng(0)
    captions = [face_caption(attributes, rng) for _ in range(2000)]
    full = "a photo of a smiling person with short brown hair and glasses"
    shares = {text: captions.count(text) / 2000 for text in set(captions)}
    assert shares == pytest.approx(
        {"a photo of a person": 0.3, "a photo of a smiling person": 0.15, full: 0.55}, abs=0.04
    )
    assert full == face_caption(attributes)


def test_rare_token_stands_before_person() -> None:
    for item in make_faces(40, 1, token="sks", vary_captions=True):
        assert item.caption.count("sks") == 1
        assert GRAMMAR.fullmatch(item.caption.replace(" sks person", " person")), item.caption
