"""Feature modules: uint8 images (B, 3, H, W) in, one feature vector per image (B, F) out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lordfast.data.images import Uint8Image
from lordfast.diffusion import LatentDiffusion, TensorCache, content_key
from lordfast.evaluation.extraction import extract_rows, weights_key
from lordfast.evaluation.factories import call_factory
from lordfast.evaluation.inception import load_inception

EXPECTED = "'vae', 'inception', 'package.module:factory' or a TorchScript file"


class VaeFeatures(nn.Module):
    """The activations that a VAE's encoder makes its latents of, averaged over positions: (B, F), 64 in the demo model.

    A coarse stand-in for Inception features that needs no download: it knows colours, textures and layout, and no
    objects. Its distances rank sets of one kind of image; they compare with no published FID or KID.
    """

    def __init__(self, model: LatentDiffusion) -> None:
        super().__init__()
        self._model = model

    @property
    def cache_key(self) -> str:
        """What the features depend on."""
        return content_key("vae", self._model.fingerprint("vae"), str(self._model.vae.dtype))

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


def load_features(
    spec: str,
    *,
    model: LatentDiffusion | None = None,
    device: torch.device | None = None,
    weights: Path | None = None,
) -> nn.Module:
    """The feature module that `spec` names, in evaluation mode on `device`.

    Args:
        spec: ``vae`` (`VaeFeatures` of `model`), ``inception`` (`load_inception`, 2048 features),
            ``package.module:factory`` (called without arguments, also from the current folder), or the path of a
            TorchScript file.
        model: for ``vae``.
        device: CPU where None.
        weights: a file for ``inception``; None downloads the published ones.

    Raises:
        Unavailable: Inception's weights are not there.
        ValueError: `spec` is none of these, can't be imported or loaded, or gives something that is no module.
    """
    device = device or torch.device("cpu")
    if spec == "vae":
        if model is None:
            raise ValueError("features: 'vae' needs a model, got None")
        return VaeFeatures(model)
    if spec == "inception":
        module: nn.Module = load_inception(weights)
    elif Path(spec).is_file():
        module = _torchscript(Path(spec), device)
    elif ":" in spec:
        module = _factory(spec)
    else:
        raise ValueError(f"features: {spec!r} is unknown and no file; expected {EXPECTED}")
    return module.to(device).eval()


def _torchscript(path: Path, device: torch.device) -> nn.Module:
    try:
        return torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"features: {path} is no TorchScript file: {reason[0]}") from error


def _factory(spec: str) -> nn.Module:
    made = call_factory(spec, "features", EXPECTED)
    if not isinstance(made, nn.Module):
        raise ValueError(f"features: {spec!r} gave a {type(made).__name__}; expected a torch.nn.Module")
    return made


def features_key(spec: str, features: nn.Module, device: torch.device) -> str | None:
    """What stands for `load_features` of `spec` on disk; None for modules whose rows should not be kept.

    Of code that a person brings nobody knows when it changes: its rows are kept only where the module says by a text
    ``cache_key`` what they depend on besides its weights.
    """
    own = getattr(features, "cache_key", None)
    if spec not in ("vae", "inception"):
        if Path(spec).is_file():
            own = hashlib.sha256(Path(spec).read_bytes()).hexdigest()
        elif isinstance(own, str):
            own = weights_key(f"{spec} {own}", features)
    return content_key(own, device.type) if isinstance(own, str) else None


@torch.no_grad()
def extract(
    features: nn.Module,
    images: Iterable[Uint8Image],
    *,
    device: torch.device | None = None,
    batch_size: int = 8,
    cache: TensorCache | None = None,
    key: str | None = None,
    on_batch: Callable[[int], Any] | None = None,
) -> Tensor:
    """Features of `images`, float64 (N, F) on the CPU.

    Args:
        features: takes uint8 (B, 3, H, W) on `device`, gives (B, F).
        images: uint8 (H, W, 3), all of one size.
        cache, key: where rows are kept, and what stands there for the module, from `features_key`.
        on_batch: called with the size of each finished batch.

    Raises:
        ValueError: no images, or the module fails or gives something else than finite numbers of shape (B, F).
    """
    target = device or torch.device("cpu")
    return extract_rows(
        lambda chunk: _call(features, chunk, target),
        images,
        batch_size=batch_size,
        cache=cache,
        key=key,
        on_batch=on_batch,
    )


def _call(features: nn.Module, images: Sequence[Uint8Image], device: torch.device) -> Tensor:
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(device)
    try:
        output = features(batch)
    # It may be the user's own, and its errors don't say on what it was called.
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"features: the module failed on uint8 images {tuple(batch.shape)}: {error}") from error
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != len(images):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"features: expected an output of shape ({len(images)}, F), got {got}")
    if not bool(torch.isfinite(output).all()):
        raise ValueError("features: the module gave NaN or infinite features")
    return output
