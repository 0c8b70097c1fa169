"""Procedural landscapes: a scene that stays, and photos of it that differ in clouds, ridges, light and small shifts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lordfast.data.drawing import (
    PIXEL_X,
    PIXEL_Y,
    SIZE,
    Array,
    add_sensor_noise,
    blend,
    inside,
    midpoint_ridge,
    random_tint,
    rounded_box,
    value_noise,
)


class Palette(NamedTuple):
    """Colours of a time of day or season: the sky at the horizon, the sky overhead, and the rock."""

    horizon: tuple[float, float, float]
    zenith: tuple[float, float, float]
    rock: tuple[float, float, float]


PALETTES = {
    "sunset": Palette((0.98, 0.55, 0.25), (0.45, 0.25, 0.5), (0.25, 0.15, 0.22)),
    "day": Palette((0.75, 0.88, 0.98), (0.3, 0.55, 0.9), (0.35, 0.42, 0.4)),
    "night": Palette((0.16, 0.18, 0.35), (0.03, 0.03, 0.12), (0.08, 0.09, 0.14)),
    "misty": Palette((0.88, 0.88, 0.88), (0.68, 0.72, 0.78), (0.5, 0.54, 0.58)),
    "autumn": Palette((0.95, 0.88, 0.72), (0.55, 0.7, 0.85), (0.55, 0.33, 0.15)),
}
GROUNDS = ("water", "grass", "snow")
SNOW_CAPPED = ("day", "misty")


@dataclass(frozen=True)
class Scene:
    """What makes a place the same in every photo. Lengths are in half image widths; y runs down from -1 to 1."""

    palette: str
    ground: str
    mountains: bool
    sun: bool  # at night the moon
    trees: bool
    horizon: float
    mountain_height: float
    roughness: float
    tint: tuple[float, float, float]  # added to the sky's RGB
    sun_x: float
    sun_y: float
    sun_radius: float
    tree_height: float
    ridges: int


@dataclass(frozen=True)
class LandscapeAttributes:
    """What one photo shows: labels for captions and metrics."""

    palette: str
    ground: str
    mountains: bool
    sun: bool
    trees: bool


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a random place."""
    # The order of the keyword arguments is the order of the draws: a seed's pictures depend on it.
    return Scene(
        palette=tuple(PALETTES)[rng.integers(5)],
        ground=GROUNDS[rng.integers(3)],
        mountains=rng.random() < 0.75,
        sun=rng.random() < 0.5,
        trees=rng.random() < 0.5,
        horizon=rng.uniform(0.05, 0.35),
        mountain_height=rng.uniform(0.15, 0.35),
        roughness=rng.uniform(0.45, 0.6),
        tint=random_tint(rng, 0.04),
        sun_x=rng.uniform(-0.7, 0.7),
        sun_y=rng.uniform(-0.75, -0.35),
        sun_radius=rng.uniform(0.1, 0.18),
        tree_height=rng.uniform(0.25, 0.45),
        ridges=int(rng.integers(2, 4)),
    )


def draw_landscape(scene: Scene, rng: np.random.Generator) -> tuple[Array, LandscapeAttributes]:
    """Draw a photo of a place; ``rng`` advances.

    Returns:
        float32 RGB (64, 64, 3) in [0, 1], and what it shows.
    """
    horizon = scene.horizon + rng.normal(0, 0.03)
    image = _paint_sky(scene, horizon, rng)
    if scene.sun:
        image = _paint_sun(image, scene, rng)
    texture = value_noise(rng, (8, 16, 32))
    if scene.mountains:
        image = _paint_mountains(image, scene, horizon, texture, rng)
    image = _paint_ground(image, scene, horizon, rng)
    if scene.trees:
        image = _paint_trees(image, scene, horizon, texture, rng)
    image = image * rng.uniform(0.92, 1.06)
    attributes = LandscapeAttributes(scene.palette, scene.ground, scene.mountains, scene.sun, scene.trees)
    return add_sensor_noise(image, rng), attributes


def landscape_caption(
    attributes: LandscapeAttributes, rng: np.random.Generator | None = None, token: str | None = None
) -> str:
    """Describe a landscape: "a photo of a PALETTE landscape with [mountains and ]GROUND[ and sun|moon][ and trees]".

    Args:
        attributes: from `draw_landscape`.
        rng: if given, 30 % of the captions say only "a photo of a landscape".
        token: a rare word such as "sks" to put before "landscape".
    """
    landscape = f"{token} landscape" if token else "landscape"
    if rng is not None and rng.random() < 0.3:
        return f"a photo of a {landscape}"
    parts = ["mountains"] if attributes.mountains else []
    parts.append(attributes.ground)
    if attributes.sun:
        parts.append("moon" if attributes.palette == "night" else "sun")
    if attributes.trees:
        parts.append("trees")
    return f"a photo of a {attributes.palette} {landscape} with {' and '.join(parts)}"


def _brightness(scene: Scene) -> float:
    """How much light there is for what stands on the ground, from the sky at the horizon."""
    return 0.25 + 0.75 * float(np.array(PALETTES[scene.palette].horizon, np.float32).mean())


def _paint_sky(scene: Scene, horizon: float, rng: np.random.Generator) -> Array:
    low, high = (np.array(color, np.float32) for color in PALETTES[scene.palette][:2])
    descent = np.clip((PIXEL_Y + 1) / (horizon + 1), 0, 1)[..., None] ** 0.8
    image = np.clip(high * (1 - descent) + low * descent + np.array(scene.tint), 0, 1)
    clouds = np.clip(value_noise(rng) * 1.5 - 0.1, 0, 1) * rng.uniform(0.2, 0.8)
    return image + (clouds * 0.35)[..., None] * (1 - image) * (horizon > PIXEL_Y)[..., None]


def _paint_sun(image: Array, scene: Scene, rng: np.random.Generator) -> Array:
    center_x = scene.sun_x + rng.normal(0, 0.1)
    center_y = scene.sun_y + rng.normal(0, 0.06)
    distance = np.sqrt((PIXEL_X - center_x) ** 2 + (PIXEL_Y - center_y) ** 2)
    color = (0.95, 0.95, 0.9) if scene.palette == "night" else (1.0, 0.95, 0.7)
    glow = 0.35 * np.exp(-((distance / 0.3) ** 2))
    return blend(image + glow[..., None] * np.array(color) * 0.6, inside(distance - scene.sun_radius), color)


def _paint_mountains(image: Array, scene: Scene, horizon: float, texture: Array, rng: np.random.Generator) -> Array:
    """Ranges from far to near: the nearer, the lower, the darker and the less of the sky's haze."""
    palette = PALETTES[scene.palette]
    rock, haze = np.array(palette.rock, np.float32), np.array(palette.horizon, np.float32)
    for index in range(scene.ridges):
        nearness = (index + 1) / scene.ridges
        base = horizon - 0.42 * (1 - nearness) - 0.12
        ridge = midpoint_ridge(rng, base, scene.mountain_height * (1 - 0.3 * nearness), scene.roughness)[None, :]
        color = np.clip(rock * (0.55 + 0.45 * nearness) + haze * (1 - nearness) * 0.6, 0, 1)
        slope = color * (1 + 0.25 * texture)[..., None]
        if scene.palette in SNOW_CAPPED:
            snow = np.clip(1 - (PIXEL_Y - ridge) / 0.14 + 0.5 * texture, 0, 1)[..., None]
            slope = slope * (1 - snow) + snow * 0.95
        image = blend(image, inside(ridge - PIXEL_Y), slope)
    return image


def _paint_ground(image: Array, scene: Scene, horizon: float, rng: np.random.Generator) -> Array:
    mask = inside(horizon - PIXEL_Y, 0.04)
    if scene.ground == "water":
        shore = round((horizon + 1) / 2 * SIZE)
        mirrored = np.clip(2 * shore - 1 - np.arange(SIZE), 0, SIZE - 1)
        reflection = np.concatenate([image[:shore], image[mirrored[shore:]]])
        ripples = 0.12 * np.sin(40 * PIXEL_Y * (1.2 - PIXEL_Y * 0.5) + 3 * value_noise(rng, (4, 8)))
        water = reflection * 0.72 + np.array((0.0, 0.03, 0.08)) + ripples[..., None] * 0.5
        return blend(image, mask, np.clip(water, 0, 1))
    if scene.ground == "snow":
        color = np.array((0.92, 0.94, 0.98))
    else:
        color = np.array((0.7, 0.5, 0.2) if scene.palette == "autumn" else (0.25, 0.5, 0.18))
    relief = 1 + 0.18 * value_noise(rng, (8, 16, 32)) - 0.25 * (PIXEL_Y - horizon)
    return blend(image, mask, np.clip(color * _brightness(scene) * relief[..., None], 0, 1))


def _paint_trees(image: Array, scene: Scene, horizon: float, texture: Array, rng: np.random.Generator) -> Array:
    light = _brightness(scene)
    leaves = np.array((0.75, 0.3, 0.08) if scene.palette == "autumn" else (0.08, 0.28, 0.14))
    crown = np.clip(leaves * light * (1 + 0.3 * texture)[..., None], 0, 1)
    for _ in range(int(rng.integers(3, 7))):
        x = rng.uniform(-0.95, 0.95)
        foot = rng.uniform(horizon + 0.1, 0.8)
        # The lower in the picture, the nearer and the taller.
        tip = foot - scene.tree_height * (0.6 + 0.6 * (foot - horizon))
        sides = np.abs(PIXEL_X - x) - 0.32 * (PIXEL_Y - tip)
        triangle = np.maximum(sides, np.maximum(tip - PIXEL_Y, PIXEL_Y - foot))
        image = blend(image, inside(triangle), crown)
        trunk = rounded_box(PIXEL_X, PIXEL_Y, x, foot + 0.03, 0.02, 0.04)
        image = blend(image, inside(trunk), (0.2 * light, 0.12 * light, 0.08 * light))
    return image
