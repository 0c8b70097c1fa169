"""DINO of transformers: embeddings in which pictures of the same subject are close, whatever else they show."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lordfast.evaluation.extraction import weights_key
from lordfast.evaluation.pretrained import complete, described, load_parts, pixel_values, unit_rows
from lordfast.pixels import Uint8Image


class Dino:
    """The class token of a DINO or DINOv2 vision transformer after its last normalisation, brought to length 1.

    Attributes:
        cache_key: stands for what `images` depends on.
    """

    def __init__(self, source: str, device: torch.device | None = None) -> None:
        """Load the model with its image processor.

        Args:
            source: a folder or a hub id, such as facebook/dino-vits16 or facebook/dinov2-small.
            device: CPU where None.

        Raises:
            Unavailable: `source` is neither, can't be read, lacks weights, or needs torchvision to read its images.
        """
        import transformers

        parts = load_parts(
            source,
            "dino",
            processor=transformers.AutoImageProcessor.from_pretrained,
            model=partial(transformers.AutoModel.from_pretrained, output_loading_info=True),
        )
        model = complete(parts["model"], source, "dino", spare=("pooler.",))
        if hasattr(model, "pooler"):
            # DINO has no layer on top of its class token; transformers adds one, with other random weights each time.
            model.pooler = None
        self._processor: Any = parts["processor"]
        what = described(self._processor.to_dict(), model.config.to_dict())
        self.cache_key = weights_key(f"dino {what}", model)
        self._device = device or torch.device("cpu")
        self._model: Any = torch.nn.Module.to(model, self._device)

    @torch.no_grad()
    def images(self, images: Sequence[Uint8Image]) -> Tensor:
        """(B, D) of uint8 images (H, W, 3) of any sizes, float64 on the CPU."""
        pixels = pixel_values(self._processor, images, self._device)
        return unit_rows(self._model(pixel_values=pixels).last_hidden_state[:, 0])
