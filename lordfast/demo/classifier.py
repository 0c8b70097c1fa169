"""A small network that tells what a drawn picture shows: labels for metrics, and features to measure distances in."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lordfast.data import FaceAttributes, LandscapeAttributes
from lordfast.data.faces import BACKGROUNDS, EXPRESSIONS, HAIR_COLORS, HAIR_STYLES, SKINS
from lordfast.data.landscapes import GROUNDS, SEASONS, TIMES
from lordfast.files import write_atomic

Value = str | bool
"""What an attribute of a picture can be."""

SHIPPED = Path(__file__).parent / "model" / "classifier"
SIZE = 64
"""Pixels a side of the pictures it knows."""

KIND = "kind"
KINDS = ("face", "landscape")
FACE_HEADS: dict[str, tuple[Value, ...]] = {
    "hair_color": tuple(HAIR_COLORS),  # not asked of bald people
    "hair_style": HAIR_STYLES,
    "glasses": (False, True),
    "beard": (False, True),
    "hat": (False, True),
    "skin": SKINS,
    "expression": EXPRESSIONS,
    "background": tuple(BACKGROUNDS),
}
LANDSCAPE_HEADS: dict[str, tuple[Value, ...]] = {
    "time": tuple(TIMES),
    "season": tuple(SEASONS),
    "ground": GROUNDS,
    "mountains": (False, True),
    "sun": (False, True),
    "trees": (False, True),
}
HEADS: dict[str, tuple[Value, ...]] = {KIND: KINDS, **FACE_HEADS, **LANDSCAPE_HEADS}
"""Attribute -> its values, in the order of the logits."""
HEADS_OF_KIND = {"face": FACE_HEADS, "landscape": LANDSCAPE_HEADS}


def labels_of(attributes: FaceAttributes | LandscapeAttributes) -> dict[str, Value]:
    """Attribute -> value of a drawn picture, its kind among them, without those that don't show.

    The hair colour of bald people is such a one.
    """
    kind = KINDS[0] if isinstance(attributes, FaceAttributes) else KINDS[1]
    return _visible({KIND: kind, **{name: getattr(attributes, name) for name in HEADS_OF_KIND[kind]}})


def _visible(row: dict[str, Value]) -> dict[str, Value]:
    if row.get("hair_style") == "bald":
        del row["hair_color"]
    return row


class AttributeClassifier(nn.Module):
    """One convolutional trunk on 64x64 images and a linear head for each attribute.

    Called like a feature module of ``lordfast evaluate``: uint8 (B, 3, 64, 64) -> `features`.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, channels: tuple[int, int, int, int] = (32, 48, 64, 64), num_features: int = 64) -> None:
        super().__init__()
        self.channels, self.num_features = tuple(channels), num_features
        first, second, third, last = channels
        # No BatchNorm: attacked and generated pictures have other statistics than those it would remember.
        self.trunk = nn.Sequential(
            _convolution(3, first, stride=2),
            _convolution(first, second, stride=2),
            _Residual(second),
            _convolution(second, third, stride=2),
            _Residual(third),
            _convolution(third, last, stride=2),
            nn.Flatten(),
            # Not averaged over positions: where something lies tells a beard from hair.
            nn.Linear(last * (SIZE // 16) ** 2, num_features),
            nn.SiLU(),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(num_features, len(values)) for name, values in HEADS.items()})
        self.register_buffer("feature_mean", torch.zeros(num_features))
        self.register_buffer("feature_std", torch.ones(num_features))

    def forward(self, images: Tensor) -> Tensor:
        """The same as `features`."""
        return self.features(images)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """fp32 (B, num_features) for uint8 (B, 3, 64, 64).

        The activations that the heads read, shifted and scaled to mean 0 and standard deviation 1 over drawn pictures:
        a Frechet distance then counts in these standard deviations, and x.y / F in KID's kernel is of order 1.

        Raises:
            ValueError, TypeError: images of another shape or dtype.
        """
        return (self.trunk(_unit(images).to(self.feature_mean)).float() - self.feature_mean) / self.feature_std

    @torch.no_grad()
    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """Attribute -> (B, number of its values), the order as in `HEADS`, for uint8 (B, 3, 64, 64).

        Of every attribute, also those that only the other kind of picture has.

        Raises:
            ValueError, TypeError: images of another shape or dtype.
        """
        return self.scores(_unit(images).to(self.feature_mean))

    def scores(self, pixels: Tensor) -> dict[str, Tensor]:
        """`logits` of float pixels (B, 3, 64, 64) in [-1, 1], with gradient."""
        activations = self.trunk(pixels)
        return {name: head(activations) for name, head in self.heads.items()}

    def predict(self, images: Tensor) -> list[dict[str, Value]]:
        """What each of uint8 images (B, 3, 64, 64) shows: its "kind" and the attributes that this kind has.

        Who is bald has no hair colour.

        Raises:
            ValueError, TypeError: images of another shape or dtype.
        """
        best = {name: values.argmax(dim=1).tolist() for name, values in self.logits(images).items()}
        found = []
        for index, kind in enumerate(best[KIND]):
            names = (KIND, *HEADS_OF_KIND[KINDS[kind]])
            found.append(_visible({name: HEADS[name][best[name][index]] for name in names}))
        return found

    def save(self, folder: str | Path) -> None:
        """Write config.json, and model.safetensors in half precision."""
        folder = Path(folder)
        config = {"channels": self.channels, "num_features": self.num_features, "heads": HEADS}
        write_atomic(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
        weights = {name: value.detach().half().cpu().contiguous() for name, value in self.state_dict().items()}
        write_atomic(folder / "model.safetensors", save(weights))


def load_classifier(folder: str | Path | None = None) -> AttributeClassifier:
    """The classifier in `folder`, or the one of the embedded model; in evaluation mode, fp32, on the CPU.

    ``lordfast evaluate --features lordfast.demo.classifier:load_classifier`` measures distances in its features.

    Raises:
        ValueError: no classifier there, or one that was trained for other attributes than this version draws.
    """
    folder = Path(folder) if folder is not None else SHIPPED
    if not (folder / "config.json").is_file():
        raise ValueError(f"folder: {folder} holds no classifier; expected config.json and model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads = {name: tuple(values) for name, values in config["heads"].items()}
    if heads != HEADS:
        odd = next(name for name in {**HEADS, **heads} if heads.get(name) != HEADS.get(name))
        raise ValueError(
            f"folder: {folder} knows other attributes than are drawn: {odd} {heads.get(odd)}, expected {HEADS.get(odd)}"
        )
    classifier = AttributeClassifier(tuple(config["channels"]), config["num_features"])
    classifier.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    return classifier.eval().requires_grad_(False)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = _convolution(channels, channels)

    def forward(self, values: Tensor) -> Tensor:
        return values + self.change(values)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.SiLU())


def _unit(images: Tensor) -> Tensor:
    """uint8 -> fp32 in [-1, 1]."""
    if images.dtype != torch.uint8:
        raise TypeError(f"images: expected dtype uint8, got {images.dtype}")
    if images.ndim != 4 or images.shape[1:] != (3, SIZE, SIZE):
        raise ValueError(f"images: expected shape (B, 3, {SIZE}, {SIZE}), got {tuple(images.shape)}")
    return images.float() / 127.5 - 1
