"""What tests share that attack the same images many times."""

from collections.abc import Iterator
from functools import partial

import pytest

from lordfast.attacks import folder as folder_module


@pytest.fixture(scope="module")
def quick_probe() -> Iterator[None]:
    """One draw where the losses in metrics.jsonl are measured with eight: most of the time of so short attacks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_module, "probe_loss", partial(folder_module.probe_loss, draws=1))
        yield
