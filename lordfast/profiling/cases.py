"""The linear layers that the benchmarks time: the attention projections of SD1.5 at 512 px and SDXL at 1024 px."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class LinearCase:
    """x (batch, tokens, K) through a frozen (N, K) layer.

    Text keys and values read the text encoder's output, which wants no gradient: `x_grad` is False for them.
    """

    model: str
    tokens: int
    k: int
    n: int
    batch: int = 1
    x_grad: bool = True

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; expected at least 1")

    @property
    def m(self) -> int:
        """All tokens of the batch."""
        return self.batch * self.tokens

    @property
    def name(self) -> str:
        """Such as "sd15 image 4096 320->320"; M is a column of its own."""
        return f"{self.model} {'image' if self.x_grad else 'text'} {self.tokens} {self.k}->{self.n}"


_IMAGE = {
    "sd15": ((4096, 320, 320), (1024, 640, 640), (256, 1280, 1280)),
    "sdxl": ((4096, 640, 640), (1024, 1280, 1280)),
}
_TEXT = {
    "sd15": ((77, 768, 320), (77, 768, 640), (77, 768, 1280)),
    "sdxl": ((77, 2048, 640), (77, 2048, 1280)),
}
MODELS = tuple(_IMAGE)


def linear_cases(models: Iterable[str], batch: int) -> list[LinearCase]:
    """The cases of these models, image layers first.

    Raises:
        ValueError: an unknown model, or a batch below 1.
    """
    found = []
    for model in models:
        if model not in _IMAGE:
            raise ValueError(f"models: {model!r} is unknown; expected some of {', '.join(MODELS)}")
        found += [LinearCase(model, *shape, batch) for shape in _IMAGE[model]]
        found += [LinearCase(model, *shape, batch, x_grad=False) for shape in _TEXT[model]]
    return found


def quick_cases(batch: int) -> list[LinearCase]:
    """One self-attention layer of each resolution of SD1.5 and one text layer."""
    image = [LinearCase("sd15", *shape, batch) for shape in _IMAGE["sd15"]]
    return [*image, LinearCase("sd15", *_TEXT["sd15"][1], batch, x_grad=False)]
