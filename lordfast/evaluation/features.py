"""Feature modules: uint8 images (B, 3, H, W) in, one feature vector per image (B, F) out."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lordfast.data.images import Uint8Image
from lordfast.diffusion import LatentDiffusion

EXPECTED = "'vae', 'inception', 'package.module:factory' or a TorchScript file"


class VaeFeatures(nn.Module):
    """The activations that a VAE's encoder makes its latents of, averaged over positions: (B, F), 64 in the demo model.

    A coarse stand-in for Inception features that needs no download: it knows colours, textures and layout, and no
    objects. Its distances rank sets of one kind of image; they compare with no published FID or KID.
    """

    def __init__(self, model: LatentDiffusion) -> None:
        super().__init__()
        self._model = model

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> fp32 (B, F)."""
        # After the encoder's last normalisation: before it, values in the tens make the cubic kernel of KID explode.
        caught: list[Tensor] = []
        vae = self._model.vae
        hook = vae.encoder.conv_act.register_forward_hook(lambda module, args, output: caught.append(output))
        try:
            vae.encode((images.float() / 127.5 - 1).to(self._model.device, vae.dtype))
        finally:
            hook.remove()
        return caught[0].float().mean(dim=(2, 3))


def load_features(spec: str, *, model: LatentDiffusion | None = None, device: torch.device | None = None) -> nn.Module:
    """The feature module that `spec` names, in evaluation mode on `device`.

    Args:
        spec: ``vae`` (`VaeFeatures` of `model`), ``inception`` (torchmetrics' Inception v3, 2048 features),
            ``package.module:factory`` (called without arguments, also from the current folder), or the path of a
            TorchScript file.
        model: for ``vae``.
        device: CPU where None.

    Raises:
        ValueError: `spec` is none of these, can't be imported or loaded, or gives something that is no module.
    """
    device = device or torch.device("cpu")
    if spec == "vae":
        if model is None:
            raise ValueError("features: 'vae' needs a model, got None")
        return VaeFeatures(model)
    if spec == "inception":
        module = _inception()
    elif Path(spec).is_file():
        module = _torchscript(Path(spec), device)
    elif ":" in spec:
        module = _factory(spec)
    else:
        raise ValueError(f"features: {spec!r} is unknown and no file; expected {EXPECTED}")
    return module.to(device).eval()


def _inception() -> nn.Module:
    from torchmetrics.image import fid

    if not fid._TORCH_FIDELITY_AVAILABLE:
        raise ValueError(
            "features: 'inception' needs the package torch-fidelity, which is not installed: "
            "pip install 'lordfast[inception]' (it downloads Inception's weights on first use); "
            "'vae' works without it"
        )
    try:
        return fid.FrechetInceptionDistance(feature=2048).inception
    except (OSError, RuntimeError) as error:
        raise ValueError(f"features: Inception's weights can't be downloaded or read: {error}") from error


def _torchscript(path: Path, device: torch.device) -> nn.Module:
    try:
        return torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"features: {path} is no TorchScript file: {reason[0]}") from error


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    # An installed command's sys.path lacks the folder that the person stands in, where their module usually is.
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _factory(spec: str) -> nn.Module:
    module_name, _, attribute = spec.partition(":")
    try:
        with _current_folder_importable():
            factory = getattr(importlib.import_module(module_name), attribute)
            made = factory()
    # The code is the user's own: whatever it raises, they must learn that it came out of their module.
    except Exception as error:
        raise ValueError(
            f"features: {spec!r} failed with {type(error).__name__}: {error}; expected {EXPECTED}"
        ) from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"features: {spec!r} gave a {type(made).__name__}; expected a torch.nn.Module")
    return made


@torch.no_grad()
def extract(
    features: nn.Module,
    images: Iterable[Uint8Image],
    *,
    device: torch.device | None = None,
    batch_size: int = 8,
    on_batch: Callable[[int], Any] | None = None,
) -> Tensor:
    """Features of `images`, float64 (N, F) on the CPU.

    Args:
        features: takes uint8 (B, 3, H, W) on `device`, gives (B, F).
        images: uint8 (H, W, 3), all of one size.
        on_batch: called with the size of each finished batch.

    Raises:
        ValueError: no images, or the module fails or gives something else than finite numbers of shape (B, F).
    """
    waiting = iter(images)
    rows: list[Tensor] = []
    while chunk := list(islice(waiting, batch_size)):
        rows.append(_call(features, chunk, device or torch.device("cpu")))
        if on_batch is not None:
            on_batch(len(chunk))
    if not rows:
        raise ValueError("images: expected at least one, got none")
    return torch.cat(rows)


def _call(features: nn.Module, images: Sequence[Uint8Image], device: torch.device) -> Tensor:
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(device)
    try:
        output = features(batch)
    # As above: a module of the user's, whose errors don't say on what it was called.
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"features: the module failed on uint8 images {tuple(batch.shape)}: {error}") from error
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != len(images):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"features: expected an output of shape ({len(images)}, F), got {got}")
    rows = output.double().cpu()
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("features: the module gave NaN or infinite features")
    return rows
