"""Procedural landscapes: a scene that stays, and photos of it that differ in clouds, ridges, light and small shifts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lordfast.data.drawing import Array, Canvas, Color, blend, canvas_of, random_tint, rounded_box


class Daylight(NamedTuple):
    """Colours of a time of day: the sky at the horizon, the sky overhead, the rock, and the sun or moon."""

    horizon: tuple[float, float, float]
    zenith: tuple[float, float, float]
    rock: tuple[float, float, float]
    sun: tuple[float, float, float]


class Foliage(NamedTuple):
    """Colours of a season: the meadow and the crowns of the trees."""

    meadow: tuple[float, float, float]
    leaves: tuple[float, float, float]


TIMES = {
    "dawn": Daylight((0.95, 0.87, 0.86), (0.66, 0.7, 0.82), (0.5, 0.5, 0.58), (1.0, 0.96, 0.88)),
    "day": Daylight((0.75, 0.88, 0.98), (0.3, 0.55, 0.9), (0.36, 0.4, 0.44), (1.0, 0.95, 0.7)),
    "sunset": Daylight((0.98, 0.55, 0.25), (0.45, 0.25, 0.5), (0.25, 0.15, 0.22), (1.0, 0.93, 0.62)),
    "night": Daylight((0.16, 0.18, 0.35), (0.03, 0.03, 0.12), (0.08, 0.09, 0.14), (0.95, 0.95, 0.9)),
}
SEASONS = {
    "spring": Foliage((0.5, 0.72, 0.25), (0.96, 0.6, 0.76)),
    "summer": Foliage((0.2, 0.48, 0.16), (0.06, 0.3, 0.12)),
    "autumn": Foliage((0.72, 0.5, 0.18), (0.8, 0.3, 0.05)),
    "winter": Foliage((0.93, 0.95, 0.99), (0.12, 0.24, 0.22)),
}
GROUNDS = ("lake", "meadow")
SNOW = (0.95, 0.96, 1.0)
BANK = 0.68
"""Where the near bank of a lake begins."""


@dataclass(frozen=True)
class Scene:
    """What makes a place the same in every photo. Lengths are in half image widths; y runs down from -1 to 1."""

    time: str  # one of TIMES
    season: str  # one of SEASONS
    ground: str  # one of GROUNDS
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

    time: str
    season: str
    ground: str
    mountains: bool
    sun: bool
    trees: bool


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a random place."""
    # The order of the keyword arguments is the order of the draws: a seed's pictures depend on it.
    return Scene(
        time=tuple(TIMES)[rng.integers(4)],
        season=tuple(SEASONS)[rng.integers(4)],
        ground=GROUNDS[rng.integers(2)],
        mountains=rng.random() < 0.7,
        sun=rng.random() < 0.5,
        trees=rng.random() < 0.6,
        horizon=rng.uniform(0.05, 0.3),
        mountain_height=rng.uniform(0.15, 0.35),
        roughness=rng.uniform(0.42, 0.55),
        tint=random_tint(rng, 0.03),
        sun_x=rng.uniform(-0.7, 0.7),
        sun_y=rng.uniform(-0.75, -0.4),
        sun_radius=rng.uniform(0.1, 0.18),
        tree_height=rng.uniform(0.35, 0.55),
        ridges=int(rng.integers(2, 4)),
    )


def draw_landscape(scene: Scene, rng: np.random.Generator, size: int = 64) -> tuple[Array, LandscapeAttributes]:
    """Draw a photo of a place.

    Args:
        scene: from `draw_scene`.
        rng: advances.
        size: pixels a side; only the resolution and the grain differ between sizes.

    Returns:
        float32 RGB (size, size, 3) in [0, 1], and what it shows.

    Raises:
        ValueError: a size below 16.
    """
    view = _View(canvas_of(size), scene, rng)
    image = view.paint_sky()
    if scene.sun:
        image = view.paint_sun(image)
    if scene.mountains:
        image = view.paint_mountains(image)
    image = view.paint_lake(image) if scene.ground == "lake" else view.paint_meadow(image, view.horizon)
    if scene.trees:
        image = view.paint_trees(image)
    image = image * rng.uniform(0.92, 1.06)
    attributes = LandscapeAttributes(scene.time, scene.season, scene.ground, scene.mountains, scene.sun, scene.trees)
    return view.canvas.develop(image, rng), attributes


def landscape_caption(
    attributes: LandscapeAttributes, rng: np.random.Generator | None = None, token: str | None = None
) -> str:
    """Describe a landscape: "a photo of a SEASON landscape at TIME with [mountains and ]GROUND[ and sun][ and trees]".

    Args:
        attributes: from `draw_landscape`.
        rng: if given, 15 % of the captions say only "a photo of a landscape", and 10 % only season and time.
        token: a rare word such as "sks" to put before "landscape".
    """
    landscape = f"{token} landscape" if token else "landscape"
    vagueness = rng.random() if rng is not None else 1.0
    if vagueness < 0.15:
        return f"a photo of a {landscape}"
    article = "an" if attributes.season == "autumn" else "a"
    start = f"a photo of {article} {attributes.season} {landscape} at {attributes.time}"
    if vagueness < 0.25:
        return start
    parts = ["mountains"] if attributes.mountains else []
    parts.append(attributes.ground)
    if attributes.sun:
        parts.append("moon" if attributes.time == "night" else "sun")
    if attributes.trees:
        parts.append("trees")
    return f"{start} with {' and '.join(parts)}"


class _View:
    """One photo of a scene; each paint method returns a new image."""

    def __init__(self, canvas: Canvas, scene: Scene, rng: np.random.Generator) -> None:
        self.canvas, self.scene, self.rng = canvas, scene, rng
        self.light, self.foliage = TIMES[scene.time], SEASONS[scene.season]
        self.horizon = scene.horizon + rng.normal(0, 0.03)
        self.texture = canvas.value_noise(rng, (8, 16))
        # How much light there is for what stands on the ground, from the sky at the horizon.
        self.brightness = 0.3 + 0.7 * float(np.mean(self.light.horizon))

    def lit(self, color: Color, contrast: float) -> Array:
        """A surface of one colour under this light, mottled."""
        shade = 1 + contrast * self.texture
        return np.clip(np.asarray(color, np.float32) * self.brightness * shade[..., None], 0, 1)

    def paint_sky(self) -> Array:
        low, high = np.array(self.light.horizon, np.float32), np.array(self.light.zenith, np.float32)
        descent = np.clip((self.canvas.y + 1) / (self.horizon + 1), 0, 1)[..., None] ** 0.8
        image = np.clip(high * (1 - descent) + low * descent + np.array(self.scene.tint), 0, 1)
        clouds = np.clip(self.canvas.value_noise(self.rng) * 1.5 - 0.1, 0, 1) * self.rng.uniform(0.2, 0.8)
        return image + (clouds * 0.35)[..., None] * (1 - image) * (self.horizon > self.canvas.y)[..., None]

    def paint_sun(self, image: Array) -> Array:
        center_x = self.scene.sun_x + self.rng.normal(0, 0.1)
        center_y = self.scene.sun_y + self.rng.normal(0, 0.05)
        distance = np.sqrt((self.canvas.x - center_x) ** 2 + (self.canvas.y - center_y) ** 2)
        glow = 0.35 * np.exp(-((distance / 0.3) ** 2))
        color = np.array(self.light.sun, np.float32)
        disc = self.canvas.inside(distance - self.scene.sun_radius)
        return blend(image + glow[..., None] * color * 0.6, disc, color)

    def paint_mountains(self, image: Array) -> Array:
        """Ranges from far to near: the nearer, the lower, the darker and the less of the sky's haze."""
        rock, haze = np.array(self.light.rock, np.float32), np.array(self.light.horizon, np.float32)
        for index in range(self.scene.ridges):
            nearness = (index + 1) / self.scene.ridges
            base = self.horizon - 0.42 * (1 - nearness) - 0.14
            height = self.scene.mountain_height * (1 - 0.3 * nearness)
            ridge = self.canvas.midpoint_ridge(self.rng, base, height, self.scene.roughness)[None, :]
            color = np.clip(rock * (0.55 + 0.45 * nearness) + haze * (1 - nearness) * 0.6, 0, 1)
            slope = color * (1 + 0.18 * self.texture)[..., None]
            if self.scene.season == "winter":
                snow = np.clip(1 - (self.canvas.y - ridge) / 0.2 + 0.5 * self.texture, 0, 1)[..., None]
                slope = slope * (1 - snow) + snow * self.brightness * np.array(SNOW)
            image = blend(image, self.canvas.inside(ridge - self.canvas.y), slope)
        return image

    def paint_meadow(self, image: Array, edge: float | Array) -> Array:
        """Everything below the line ``edge``, darker towards the viewer."""
        depth = (1 - 0.25 * (self.canvas.y - edge))[..., None]
        meadow = np.clip(self.lit(self.foliage.meadow, 0.18) * depth, 0, 1)
        return blend(image, self.canvas.inside(edge - self.canvas.y), meadow)

    def paint_lake(self, image: Array) -> Array:
        """The mirrored picture, darker, bluer and rippled, as far as the near bank."""
        size, y = self.canvas.size, self.canvas.y
        shore = round((self.horizon + 1) / 2 * size)
        mirrored = np.clip(2 * shore - 1 - np.arange(size), 0, size - 1)
        reflection = np.concatenate([image[:shore], image[mirrored[shore:]]])
        ripples = 0.06 * np.sin(40 * y * (1.2 - y * 0.5) + 3 * self.canvas.value_noise(self.rng, (4, 8)))
        water = reflection * 0.72 + np.array((0.0, 0.03, 0.08)) + ripples[..., None] * self.brightness
        image = blend(image, self.canvas.inside(self.horizon - y), np.clip(water, 0, 1))
        wave = self.rng.uniform(0, 2 * np.pi)
        return self.paint_meadow(image, BANK + 0.06 * np.sin(2.5 * self.canvas.x + wave))

    def paint_trees(self, image: Array) -> Array:
        x, y = self.canvas.x, self.canvas.y
        crown = self.lit(self.foliage.leaves, 0.25)
        snow = self.brightness * np.array(SNOW)
        # Nobody plants trees in a lake.
        first = BANK + 0.1 if self.scene.ground == "lake" else self.horizon + 0.12
        for _ in range(int(self.rng.integers(3, 6))):
            center = self.rng.uniform(-0.95, 0.95)
            foot = self.rng.uniform(first, 0.9)
            # The lower in the picture, the nearer and the taller.
            tip = foot - self.scene.tree_height * (0.6 + 0.6 * (foot - self.horizon))
            sides = np.abs(x - center) - 0.34 * (y - tip)
            triangle = self.canvas.inside(np.maximum(sides, np.maximum(tip - y, y - foot)))
            trunk = rounded_box(x, y, center, foot + 0.03, 0.025, 0.045)
            image = blend(image, self.canvas.inside(trunk), np.array((0.22, 0.13, 0.08)) * self.brightness)
            image = blend(image, triangle, crown)
            if self.scene.season == "winter":
                cover = np.clip(1.2 - 2.2 * (y - tip) / (foot - tip), 0, 1)
                image = blend(image, triangle * cover, snow)
        return image
