"""Who is in a picture: backends that find a face and embed it, or anything else that has an identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lordfast.evaluation.factories import call_factory
from lordfast.evaluation.measure import Unavailable
from lordfast.pixels import Uint8Image

Embedding = npt.NDArray[np.float64]
Backend = Callable[[Uint8Image], Embedding | None]
"""uint8 (H, W, 3) -> the embedding (D,) of the face in it, of length 1; None where none is found."""

EXPECTED = "'insightface', 'facenet' or 'package.module:factory'"


def load_identity(spec: str, device: torch.device | None = None) -> Backend:
    """The backend that `spec` names.

    Args:
        spec: ``insightface`` (ArcFace on RetinaFace's detections: the buffalo_l models), ``facenet`` (facenet-pytorch:
            MTCNN and an Inception ResNet trained on VGGFace2), or ``package.module:factory``: called without
            arguments, it gives a function from a uint8 image (H, W, 3) to an embedding (D,), or None for no face.
            ``lordfast.demo.identity:faces`` and ``:landscapes`` know the drawn pictures of the embedded model.
        device: CPU where None; a factory chooses for itself.

    Raises:
        Unavailable: the package or its weights are not there.
        ValueError: `spec` is none of these, or the factory can't be imported or fails.
    """
    device = device or torch.device("cpu")
    if spec in _READY_MADE:
        try:
            return _checked(spec, _READY_MADE[spec](device))
        except ImportError as error:
            raise Unavailable(f"identity: the package for {spec} is missing or broken: {error}") from error
        # Each of the packages has errors of its own for weights that don't come.
        except Exception as error:
            raise Unavailable(f"identity: {spec} can't be loaded: {type(error).__name__}: {error}") from error
    if ":" not in spec:
        raise ValueError(f"identity: {spec!r} is unknown; expected {EXPECTED}")
    made = call_factory(spec, "identity", EXPECTED)
    if not callable(made):
        raise ValueError(f"identity: {spec!r} gave a {type(made).__name__}; expected a function of an image")
    return _checked(spec, made)


def _checked(spec: str, embed: Callable[[Uint8Image], Any]) -> Backend:
    def backend(image: Uint8Image) -> Embedding | None:
        try:
            found = embed(image)
            row = None if found is None else np.asarray(found, dtype=np.float64)
        except Exception as error:
            shape = image.shape
            raise ValueError(
                f"identity: {spec} failed on a uint8 image {shape} with {type(error).__name__}: {error}"
            ) from error
        if row is None:
            return None
        length = np.linalg.norm(row) if row.ndim == 1 else np.nan
        if not (np.isfinite(length) and length > 0):
            raise ValueError(f"identity: expected of {spec} None or a finite embedding (D,), got shape {row.shape}")
        return row / length

    return backend


def _insightface(device: torch.device) -> Callable[[Uint8Image], Any]:
    from insightface.app import FaceAnalysis

    app = FaceAnalysis(name="buffalo_l", allowed_modules=["detection", "recognition"])
    app.prepare(ctx_id=(device.index or 0) if device.type == "cuda" else -1)

    def embed(image: Uint8Image) -> Any:
        # It reads channels as OpenCV does.
        faces = app.get(np.ascontiguousarray(image[:, :, ::-1]))
        if not faces:
            return None
        largest = max(faces, key=lambda face: (face.bbox[2] - face.bbox[0]) * (face.bbox[3] - face.bbox[1]))
        return largest.normed_embedding

    return embed


def _facenet(device: torch.device) -> Callable[[Uint8Image], Any]:
    from facenet_pytorch import MTCNN, InceptionResnetV1
    from PIL import Image

    detector = MTCNN(select_largest=True, device=device)
    network = InceptionResnetV1(pretrained="vggface2").to(device).eval()

    @torch.no_grad()
    def embed(image: Uint8Image) -> Any:
        face = detector(Image.fromarray(image))
        return None if face is None else network(face[None].to(device))[0].cpu().numpy()

    return embed


_READY_MADE: dict[str, Callable[[torch.device], Callable[[Uint8Image], Any]]] = {
    "insightface": _insightface,
    "facenet": _facenet,
}
