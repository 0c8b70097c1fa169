"""Procedural faces: an identity that stays, and photos of it that differ in pose, expression, light and background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lordfast.data.drawing import Array, Canvas, blend, canvas_of, ellipse, random_tint, rounded_box

HAIR_COLORS = {
    "black": (0.08, 0.07, 0.08),
    "brown": (0.36, 0.21, 0.11),
    "blond": (0.92, 0.76, 0.38),
    "red": (0.75, 0.27, 0.1),
    "gray": (0.66, 0.66, 0.69),
    "blue": (0.2, 0.35, 0.85),
}
HAIR_STYLES = ("short", "long", "bald", "curly", "bob")
EXPRESSIONS = ("neutral", "smiling", "surprised")
SKINS = ("light", "medium", "tan", "dark")
BACKGROUNDS = {
    "white": (0.93, 0.92, 0.9),
    "green": (0.42, 0.68, 0.4),
    "pink": (0.95, 0.66, 0.74),
    "orange": (0.96, 0.6, 0.24),
    "teal": (0.16, 0.6, 0.64),
    "purple": (0.46, 0.3, 0.64),
}
SKIN_TONES = np.array(
    [
        (1.0, 0.87, 0.77),
        (0.96, 0.78, 0.65),
        (0.87, 0.66, 0.5),
        (0.72, 0.5, 0.36),
        (0.52, 0.34, 0.24),
        (0.38, 0.25, 0.18),
    ],
    np.float32,
)
CLOTH_COLORS = np.array(
    [
        (0.85, 0.2, 0.2),
        (0.2, 0.3, 0.75),
        (0.15, 0.55, 0.3),
        (0.9, 0.9, 0.9),
        (0.15, 0.15, 0.18),
        (0.9, 0.75, 0.2),
        (0.55, 0.25, 0.65),
    ],
    np.float32,
)
EYE_COLORS = np.array([(0.25, 0.15, 0.08), (0.2, 0.45, 0.8), (0.2, 0.5, 0.25), (0.3, 0.3, 0.33)], np.float32)
FRAME_COLOR = (0.06, 0.06, 0.07)

EYE_Y = -0.06
MOUTH_Y = 0.30


@dataclass(frozen=True)
class FaceIdentity:
    """What makes a person the same in every photo. Lengths are in half image widths, before the photo's scale."""

    skin_tone: float  # position on SKIN_TONES, 0 (light) to 5 (dark)
    hair_color: str
    hair_tint: tuple[float, float, float]  # added to the hair colour's RGB
    hair_style: str
    eye_color: int  # index into EYE_COLORS
    face_width: float
    face_height: float
    eye_spacing: float
    eye_radius: float
    brow_thickness: float
    nose_size: float
    mouth_width: float
    lip_redness: float
    glasses: bool
    beard: bool
    hat: bool
    shirt: int  # index into CLOTH_COLORS
    hat_color: int  # index into CLOTH_COLORS


@dataclass(frozen=True)
class FaceAttributes:
    """What one photo shows: labels for captions and metrics."""

    hair_color: str
    hair_style: str
    glasses: bool
    beard: bool
    hat: bool
    skin: str  # one of SKINS
    expression: str
    background: str
    shirt: int  # index into CLOTH_COLORS


def draw_identity(rng: np.random.Generator) -> FaceIdentity:
    """Draw a random person."""
    # The order of the keyword arguments is the order of the draws: a seed's pictures depend on it.
    return FaceIdentity(
        # Not at the borders between two of SKINS, where the light would decide which of them a photo shows.
        skin_tone=(rng.integers(4) + rng.uniform(0.1, 0.9)) * 5 / 4,
        hair_color=tuple(HAIR_COLORS)[rng.integers(6)],
        hair_tint=random_tint(rng, 0.03),
        hair_style=HAIR_STYLES[rng.integers(5)],
        eye_color=int(rng.integers(4)),
        face_width=rng.uniform(0.40, 0.52),
        face_height=rng.uniform(0.52, 0.64),
        eye_spacing=rng.uniform(0.16, 0.22),
        eye_radius=rng.uniform(0.075, 0.105),
        brow_thickness=rng.uniform(0.02, 0.045),
        nose_size=rng.uniform(0.07, 0.13),
        mouth_width=rng.uniform(0.13, 0.22),
        lip_redness=rng.uniform(0.3, 0.9),
        glasses=rng.random() < 0.35,
        beard=rng.random() < 0.3,
        hat=rng.random() < 0.18,
        shirt=int(rng.integers(7)),
        hat_color=int(rng.integers(7)),
    )


def draw_face(
    identity: FaceIdentity, rng: np.random.Generator, expression: str | None = None, size: int = 64
) -> tuple[Array, FaceAttributes]:
    """Draw a photo of a person with random pose, light and background.

    Args:
        identity: from `draw_identity`.
        rng: advances.
        expression: one of EXPRESSIONS; drawn if ``None``.
        size: pixels a side; only the resolution and the grain differ between sizes.

    Returns:
        float32 RGB (size, size, 3) in [0, 1], and what it shows.

    Raises:
        ValueError: an unknown expression, or a size below 16.
    """
    canvas = canvas_of(size)
    if expression is None:
        expression = EXPRESSIONS[rng.integers(3)]
    elif expression not in EXPRESSIONS:
        raise ValueError(f"expression: expected one of {', '.join(EXPRESSIONS)}, got {expression!r}")

    background = tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    image = _paint_background(canvas, background, rng)
    head = _Head(canvas, identity, rng)
    image = head.paint_back_hair(image)
    image = head.paint_body(image)
    image = head.paint_skull(image)
    image = head.paint_beard(image)
    image = head.paint_front_hair(image)
    image = head.paint_eyes(image, wide_open=expression == "surprised")
    image = head.paint_nose(image)
    image = head.paint_mouth(image, expression)
    image = head.paint_glasses_and_hat(image)

    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + 0.15 * (np.cos(angle) * canvas.x + np.sin(angle) * canvas.y)
    image = image * light[..., None] * rng.uniform(0.9, 1.08)
    attributes = FaceAttributes(
        hair_color=identity.hair_color,
        hair_style=identity.hair_style,
        glasses=identity.glasses,
        beard=identity.beard,
        hat=identity.hat,
        skin=SKINS[int(min(identity.skin_tone / 5 * 4, 3))],
        expression=expression,
        background=background,
        shirt=identity.shirt,
    )
    return canvas.develop(image, rng), attributes


def face_caption(attributes: FaceAttributes, rng: np.random.Generator | None = None, token: str | None = None) -> str:
    """Describe a face.

    "a photo of a [smiling |surprised ]person with HAIR and SKIN skin[ and glasses][ and beard][ and hat] on a COLOR
    background".

    Args:
        attributes: from `draw_face`.
        rng: if given, 15 % of the captions say only "a photo of a person", 10 % add only the expression, and of the
            others 30 % leave out the skin and 30 % the background.
        token: a rare word such as "sks" to put before "person".
    """
    person = f"{token} person" if token else "person"
    vagueness, skin, background = rng.random(3) if rng is not None else np.ones(3)
    if vagueness < 0.15:
        return f"a photo of a {person}"
    if attributes.expression != "neutral":
        person = f"{attributes.expression} {person}"
    if vagueness < 0.25:
        return f"a photo of a {person}"
    bald = attributes.hair_style == "bald"
    parts = ["bald head" if bald else f"{attributes.hair_style} {attributes.hair_color} hair"]
    parts += [f"{attributes.skin} skin"] if skin >= 0.3 else []
    parts += [name for name in ("glasses", "beard", "hat") if getattr(attributes, name)]
    place = f" on a {attributes.background} background" if background >= 0.3 else ""
    return f"a photo of a {person} with {' and '.join(parts)}{place}"


def _paint_background(canvas: Canvas, name: str, rng: np.random.Generator) -> Array:
    """A wall of the named colour, brighter on one side and slightly mottled."""
    color = np.array(BACKGROUNDS[name], np.float32) + np.array(random_tint(rng, 0.025), np.float32)
    angle, contrast = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.3)
    slope = 1 + contrast * (np.cos(angle) * canvas.x + np.sin(angle) * canvas.y - 0.5)
    return color * (slope + 0.06 * rng.random() * canvas.value_noise(rng))[..., None]


class _Head:
    """A posed head. (x, y) are its own coordinates at every pixel; each paint method returns a new image."""

    def __init__(self, canvas: Canvas, identity: FaceIdentity, rng: np.random.Generator) -> None:
        tilt = rng.normal(0, 0.06)
        shift_x = rng.normal(0, 0.045)
        shift_y = rng.normal(0.05, 0.035)
        shrink = rng.uniform(0.95, 1.12)
        self.yaw = rng.uniform(-0.12, 0.12)  # how far the features have turned to the side
        self.inside = canvas.inside
        across, down = canvas.x - shift_x, canvas.y - shift_y
        self.x = (across * np.cos(tilt) + down * np.sin(tilt)) * shrink
        self.y = (down * np.cos(tilt) - across * np.sin(tilt)) * shrink
        self.identity = identity
        self.texture = canvas.value_noise(rng, (8, 16))

        darker = int(identity.skin_tone)
        part = identity.skin_tone - darker
        self.skin = SKIN_TONES[darker] * (1 - part) + SKIN_TONES[min(darker + 1, len(SKIN_TONES) - 1)] * part
        hair = np.array(HAIR_COLORS[identity.hair_color], np.float32)
        self.hair = np.clip(hair + np.array(identity.hair_tint), 0, 1)
        self.hair_texture = (1 + 0.14 * self.texture)[..., None]
        self.skull = self.inside(self.ellipse(0, 0, identity.face_width, identity.face_height))

    def ellipse(self, center_x: float, center_y: float, radius_x: float, radius_y: float) -> Array:
        return ellipse(self.x, self.y, center_x, center_y, radius_x, radius_y)

    def box(
        self, center_x: float, center_y: float, half_width: float, half_height: float, radius: float = 0.0
    ) -> Array:
        return rounded_box(self.x, self.y, center_x, center_y, half_width, half_height, radius)

    def paint_hair(self, image: Array, mask: Array, brightness: float = 1.0) -> Array:
        return blend(image, mask, np.clip(self.hair * brightness * self.hair_texture, 0, 1))

    def paint_back_hair(self, image: Array) -> Array:
        """The hair that shows behind the head and the shoulders."""
        width, height, style = self.identity.face_width, self.identity.face_height, self.identity.hair_style
        if style == "long":
            fall = self.box(0, 0.3, width + 0.16, 0.5, 0.15)
            return self.paint_hair(
                image, self.inside(np.minimum(self.ellipse(0, -0.18, width + 0.17, height * 0.85), fall))
            )
        if style == "bob":
            return self.paint_hair(image, self.inside(self.box(0, -0.12, width + 0.15, 0.5, 0.3)))
        if style == "curly":
            curls = 0.05 * np.sin(14 * np.arctan2(self.y + 0.22, self.x))
            return self.paint_hair(image, self.inside(self.ellipse(0, -0.22, width + 0.2, height * 0.8) + curls))
        return image

    def paint_body(self, image: Array) -> Array:
        shirt = CLOTH_COLORS[self.identity.shirt] * (1 - 0.25 * np.clip(self.y - 0.6, 0, 1)[..., None])
        image = blend(image, self.inside(self.ellipse(0, 1.12, 0.85, 0.55)), shirt)
        return blend(image, self.inside(self.box(0, 0.6, 0.15, 0.2, 0.05)), self.skin * 0.82)

    def paint_skull(self, image: Array) -> Array:
        width, height = self.identity.face_width, self.identity.face_height
        ears = np.minimum(self.ellipse(-width, 0, 0.07, 0.11), self.ellipse(width, 0, 0.07, 0.11))
        image = blend(image, self.inside(ears), self.skin * 0.88)
        # The side that the face turns to lies in shadow, as does the chin.
        side = np.sign(self.yaw + 1e-6)
        shadow = np.clip(0.5 * (self.x * side) / width + 0.35 * self.y / height, -0.3, 1)
        shade = (1 - 0.28 * shadow - 0.02 * self.texture)[..., None]
        return blend(image, self.skull, np.clip(self.skin * shade, 0, 1))

    def paint_beard(self, image: Array) -> Array:
        if not self.identity.beard:
            return image
        cheek_line = 0.16 - 0.25 * np.cos(3.2 * self.x / self.identity.face_width) * 0.35
        lips = self.inside(self.ellipse(self.yaw, MOUTH_Y, self.identity.mouth_width, 0.07))
        mask = self.skull * self.inside(cheek_line - self.y, 0.08) * (1 - lips)
        return self.paint_hair(image, 0.85 * mask, brightness=0.9)

    def paint_front_hair(self, image: Array) -> Array:
        style = self.identity.hair_style
        if style == "bald":
            return image
        hair_line = -0.22 if style == "curly" else -0.27
        fringe = 0.12 * np.cos(3 * self.x + self.yaw * 6) * (1 if style in ("bob", "short") else -1)
        cap = self.ellipse(0, -0.05, self.identity.face_width + 0.06, self.identity.face_height + 0.07)
        return self.paint_hair(image, self.inside(np.maximum(cap, self.y - hair_line - fringe + 0.03)))

    def paint_eyes(self, image: Array, wide_open: bool) -> Array:
        radius = self.identity.eye_radius * (1.25 if wide_open else 1)
        white_height = radius * (1.05 if wide_open else 0.8)
        brow_y = EYE_Y - 0.16 - (0.05 if wide_open else 0)
        for side in (-1, 1):
            eye_x = side * self.identity.eye_spacing + self.yaw
            pupil_x = eye_x + self.yaw * 0.2
            image = blend(
                image, self.inside(self.ellipse(eye_x, EYE_Y, radius * 1.25, white_height)), (0.97, 0.97, 0.97)
            )
            iris = self.ellipse(pupil_x, EYE_Y, radius * 0.62, radius * 0.62)
            image = blend(image, self.inside(iris), EYE_COLORS[self.identity.eye_color])
            pupil = self.ellipse(pupil_x, EYE_Y, radius * 0.28, radius * 0.28)
            image = blend(image, self.inside(pupil), (0.02, 0.02, 0.02))
            brow = self.box(eye_x, brow_y, radius * 1.4, self.identity.brow_thickness, 0.01)
            image = blend(image, self.inside(brow), self.hair * 0.7)
        return image

    def paint_nose(self, image: Array) -> Array:
        size = self.identity.nose_size
        return blend(image, 0.55 * self.inside(self.ellipse(self.yaw * 1.4, 0.12, size * 0.6, size)), self.skin * 0.72)

    def paint_mouth(self, image: Array, expression: str) -> Array:
        width, x = self.identity.mouth_width, self.yaw
        lips = np.array([0.75, 0.25 + 0.2 * (1 - self.identity.lip_redness), 0.27], np.float32)
        lips = lips * np.clip(0.55 + 0.5 * self.skin.mean(), 0.5, 1)
        if expression == "smiling":
            below_upper_lip = MOUTH_Y - 0.045 - self.y
            smile = np.maximum(self.ellipse(x, MOUTH_Y - 0.06, width * 1.2, 0.17), below_upper_lip)
            teeth = np.maximum(self.ellipse(x, MOUTH_Y - 0.06, width * 1.0, 0.10), below_upper_lip)
            return blend(blend(image, self.inside(smile), lips), self.inside(teeth), (0.97, 0.96, 0.95))
        if expression == "surprised":
            image = blend(image, self.inside(self.ellipse(x, MOUTH_Y + 0.03, width * 0.55, 0.12)), lips)
            return blend(image, self.inside(self.ellipse(x, MOUTH_Y + 0.03, width * 0.38, 0.085)), (0.2, 0.05, 0.06))
        return blend(image, self.inside(self.box(x, MOUTH_Y, width, 0.035, 0.03)), lips)

    def paint_glasses_and_hat(self, image: Array) -> Array:
        if self.identity.glasses:
            for side in (-1, 1):
                lens = self.ellipse(side * self.identity.eye_spacing + self.yaw, EYE_Y, 0.165, 0.145)
                image = blend(image, self.inside(np.abs(lens) - 0.018), FRAME_COLOR)
            image = blend(image, self.inside(self.box(self.yaw, EYE_Y, 0.05, 0.018)), FRAME_COLOR)
        if self.identity.hat:
            crown = np.maximum(self.ellipse(0, -0.3, self.identity.face_width + 0.1, 0.48), self.y + 0.32)
            brim = self.box(0, -0.34, self.identity.face_width + 0.22, 0.05, 0.03)
            image = blend(image, self.inside(np.minimum(crown, brim)), CLOTH_COLORS[self.identity.hat_color])
        return image
