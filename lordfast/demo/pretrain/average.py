"""The moving average of the weights, which is what gets shipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from diffusers.training_utils import EMAModel
from torch import nn


class Average:
    """diffusers' EMAModel over what `module` trains; a `Stateful` for checkpoints."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._trained = [p for p in module.parameters() if p.requires_grad]
        self.model = EMAModel(self._trained, decay=decay, foreach=True)
        self.state_dict: Callable = self.model.state_dict
        self.load_state_dict: Callable = self.model.load_state_dict

    def update(self) -> None:
        """Move towards the present weights; the first hundreds of updates move faster."""
        self.model.step(self._trained)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module has the averaged weights inside, and its own again afterwards."""
        self.model.store(self._trained)
        self.model.copy_to(self._trained)
        try:
            yield
        finally:
            self.model.restore(self._trained)
