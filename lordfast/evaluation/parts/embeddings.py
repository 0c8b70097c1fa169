"""Embeddings of a folder's pictures, each made once and kept on disk."""

from __future__ import annotations

import torch
from torch import Tensor

from lordfast.data import load_image
from lordfast.diffusion import TensorCache, content_key
from lordfast.evaluation.clip import Clip
from lordfast.evaluation.config import EvaluateConfig
from lordfast.evaluation.dino import Dino
from lordfast.evaluation.extraction import extract_rows
from lordfast.evaluation.inputs import ImageFolder
from lordfast.training.progress import progress


def embeddings(
    network: Clip | Dino, config: EvaluateConfig, folder: ImageFolder, label: str, device: torch.device
) -> Tensor:
    """(N, D) of the pictures of `folder`, each at its own size; kept on disk."""
    with progress(f"{type(network).__name__} of {label} images", len(folder)) as advance:
        return extract_rows(
            network.images,
            (load_image(record.path) for record in folder.records),
            batch_size=config.batch_size,
            cache=TensorCache(config.cache_dir),
            key=content_key(network.cache_key, device.type),
            on_batch=advance,
        )
