"""The backends that the operations' tests run on, each forced by its name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lordfast.ops import _native, use_backend


@dataclass(frozen=True)
class Forced:
    """A backend that everything runs on, and the widest dtype that it takes."""

    name: str
    dtype: torch.dtype

    def assert_close(self, got: Tensor, expected: Tensor, name: str = "result") -> None:
        """Equal but for rounding in a few thousand operations; each tensor is judged by its largest element."""
        slack = 4096 * torch.finfo(self.dtype).eps / 2
        assert got.shape == expected.shape and got.dtype == self.dtype, name
        if expected.numel():
            error, size = (got.double() - expected.double()).abs().max(), expected.abs().max()
            assert error <= slack * (size + 1), f"{name}: off by {error:.3g} at a size of {size:.3g}"


@pytest.fixture(
    scope="module",
    params=[
        Forced("reference", torch.float64),
        pytest.param(
            Forced("native", torch.float32),
            marks=pytest.mark.skipif(not _native.available, reason=f"no native extension: {_native.reason}"),
        ),
    ],
    ids=lambda forced: forced.name,
)
def backend(request: pytest.FixtureRequest) -> Iterator[Forced]:
    with use_backend(request.param.name):
        yield request.param


@pytest.fixture(scope="module")
def make_widest(make_case: Callable[..., object], backend: Forced) -> Callable[..., object]:
    """make_case in the backend's widest dtype."""
    return lambda *args, **options: make_case(*args, **{"dtype": backend.dtype, **options})
