"""Images through a network in batches, each image's row kept on disk, so that no set of images is measured twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lordfast.diffusion import TensorCache, content_key
from lordfast.pixels import Uint8Image

_ROW = "row"


def weights_key(name: str, module: nn.Module) -> str:
    """A digest of what a network computes: `name`, which stands for its code, and its weights."""
    state = {key: value.detach().cpu().flatten().view(torch.uint8) for key, value in module.state_dict().items()}
    return content_key(name, *(part for key in sorted(state) for part in (key, state[key].numpy())))


@torch.no_grad()
def extract_rows(
    encode: Callable[[Sequence[Uint8Image]], Tensor],
    images: Iterable[Uint8Image],
    *,
    batch_size: int = 8,
    cache: TensorCache | None = None,
    key: str | None = None,
    on_batch: Callable[[int], Any] | None = None,
) -> Tensor:
    """A row for each of `images`, float64 (N, F) on the CPU.

    Args:
        encode: uint8 images (H, W, 3) -> (B, F).
        cache: where rows are looked up by `key` and by the image's pixels, and kept.
        key: stands for everything in `encode` that a row depends on; without it nothing is kept.
        on_batch: called with the size of each finished batch.

    Raises:
        ValueError: no images.
    """
    waiting = iter(images)
    rows: list[Tensor] = []
    while chunk := list(islice(waiting, batch_size)):
        keys = [content_key("features", key, image) if cache is not None and key is not None else "" for image in chunk]
        found = [cache.get(one) if cache is not None and one else None for one in keys]
        missing = [i for i, tensors in enumerate(found) if tensors is None]
        made = [row.cpu() for row in encode([chunk[i] for i in missing])] if missing else []
        for i, row in zip(missing, made, strict=True):
            found[i] = {_ROW: row}
            if cache is not None and keys[i]:
                cache.put(keys[i], {_ROW: row})
        rows += [tensors[_ROW].double() for tensors in found if tensors is not None]
        if on_batch is not None:
            on_batch(len(chunk))
    if not rows:
        raise ValueError("images: expected at least one, got none")
    return torch.stack(rows)
