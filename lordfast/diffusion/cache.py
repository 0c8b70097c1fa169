"""A cache of tensors on disk, keyed by content, so that no image or prompt is encoded twice."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lordfast.diffusion.model import LatentDiffusion, Text
from lordfast.files import default_cache_dir, write_atomic
from lordfast.pixels import to_tensor

logger = logging.getLogger(__name__)


def content_key(*parts: object) -> str:
    """A hex digest of `parts`; arrays count with dtype, shape and bytes, everything else with its repr."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


class TensorCache:
    """Dictionaries of tensors in safetensors files, one file a key, written to a temporary file and renamed.

    Attributes:
        hits, misses: how often `get` found something, and how often not.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_cache_dir()
        self.hits = 0
        self.misses = 0
        self._writable = True

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors under `key`, or None; an unreadable file counts as absent."""
        path = self._path(key)
        try:
            found = load_file(path) if path.exists() else None
        except (SafetensorError, OSError):
            found = None
        self.hits += found is not None
        self.misses += found is None
        return found

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Store `tensors` under `key`, on the CPU; a folder that can't be written costs time, never the run."""
        if not self._writable:
            return
        content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
        try:
            write_atomic(self._path(key), content)
        except OSError as error:
            self._writable = False
            logger.warning("cache folder %s can't be written (%s): going on without it", self.folder, error)


class NoCache(TensorCache):
    """Keeps nothing: for more prompts or images than a disk should hold."""

    def get(self, key: str) -> dict[str, Tensor] | None:
        return None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        return


@torch.no_grad()
def cached_moments(model: LatentDiffusion, images: Iterable[np.ndarray], cache: TensorCache) -> tuple[Tensor, Tensor]:
    """Latent means and standard deviations of uint8 images (H, W, 3), each (N, C, h, w) fp32 on the CPU.

    The key is the image's pixels, the VAE, its dtype and the kind of device: a renamed file hits, an edited one misses.

    Raises:
        ValueError: there is no image.
    """
    means, stds = [], []
    for image in images:
        key = content_key("moments", model.fingerprint("vae"), str(model.vae.dtype), model.device.type, image)
        moments = cache.get(key)
        if moments is None:
            # One at a time: kernels round differently with the batch size, and what is cached must not depend on it.
            mean, std = model.encode_moments(to_tensor([image]))
            moments = {"mean": mean[0].cpu(), "std": std[0].cpu()}
            cache.put(key, moments)
        means.append(moments["mean"])
        stds.append(moments["std"])
    if not means:
        raise ValueError("images: expected at least one image, got none")
    return torch.stack(means), torch.stack(stds)


def cached_text(model: LatentDiffusion, prompts: Sequence[str], cache: TensorCache) -> Text:
    """The conditioning for `prompts`, row i for prompt i, on the CPU; each distinct prompt is embedded once.

    Raises:
        ValueError: there is no prompt.
    """
    known: dict[str, Text] = {}
    for prompt in dict.fromkeys(prompts):
        ids = {name: value.tolist() for name, value in model.tokenize([prompt]).items()}
        key = content_key("text", model.text_fingerprint(), str(model.dtype), model.device.type, ids)
        text = cache.get(key)
        if text is None:
            text = {name: value.cpu() for name, value in model.embed([prompt]).items()}
            cache.put(key, text)
        known[prompt] = text
    if not known:
        raise ValueError("prompts: expected at least one prompt, got none")
    names = next(iter(known.values())).keys()
    return {name: torch.cat([known[prompt][name] for prompt in prompts]) for name in names}
