"""ISM and FDFR by hand, misses that are named, and the ready-made backends on stand-ins of their packages."""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lordfast.data import make_faces, make_landscapes, save_png
from lordfast.demo import identity as drawn
from lordfast.evaluation import EvaluateConfig
from lordfast.evaluation.identity import load_identity
from lordfast.evaluation.inputs import open_folder
from lordfast.evaluation.measure import Unavailable
from lordfast.evaluation.parts import PartResult, plan_identity

MODULE = """
def red():
    # An angle by the red channel of the corner; black shows no face.
    import numpy as np
    def embed(image):
        red = int(image[0, 0, 0])
        return None if red == 0 else 7 * np.array([np.cos(np.radians(red)), np.sin(np.radians(red))])
    return embed

def ragged():
    return lambda image: [1.0] * (1 + int(image[0, 0, 0]) % 2)

def square():
    return lambda image: [[1.0]]

def nothing():
    return lambda image: [0.0, 0.0]

def failing():
    return lambda image: image[99]

def no_function():
    return 3
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lordfast_test_identity.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


def folder(path: Path, reds: list[int]) -> Path:
    for i, red in enumerate(reds):
        image = np.zeros((8, 8, 3), np.uint8)
        image[..., 0] = red
        save_png(image, path / f"{i}.png")
    return path


def measure(tmp_path: Path, generated: list[int], reference: list[int], backend: str = "red") -> PartResult:
    folders = [folder(tmp_path / name, reds) for name, reds in (("ours", generated), ("theirs", reference))]
    config = EvaluateConfig(
        out=tmp_path / "run", generated=folders[0], reference=folders[1], device="cpu", resamples=100
    )
    spec = f"lordfast_test_identity:{backend}"
    return plan_identity(config, spec, *(open_folder(one, "images", skip_bad=False) for one in folders))()


def test_by_hand_with_misses_named(tmp_path: Path) -> None:
    found = measure(tmp_path, [60, 0, 120, 0, 150], [30, 0, 90])
    # The mean of 30 and 90 degrees points to 60.
    ism, fdfr = found.summary["ism"], found.summary["fdfr"]
    assert ism["value"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert ism["low"] < ism["value"] < ism["high"] and ism["images"] == 3
    assert (fdfr["value"], fdfr["images"]) == (0.4, 5) and 0 < fdfr["low"] < 0.4 < fdfr["high"] < 1
    assert found.summary["missed_generated"] == ["1.png", "3.png"] and found.summary["missed_reference"] == ["1.png"]
    assert [row["face"] for row in found.rows] == [True, False, True, False, True]
    assert [row["similarity"] for row in found.rows] == [
        pytest.approx(1),
        None,
        pytest.approx(0.5),
        None,
        pytest.approx(0, abs=1e-12),
    ]
    assert found.warnings == [
        "no face was found in 2 of 5 generated images: they count in FDFR, not in ISM",
        "no face was found in 1 of 3 reference images: ISM does without them",
    ]


@pytest.mark.parametrize(("ours", "theirs", "where"), [([0, 0], [30, 40], "generated"), ([30, 0], [0, 0], "reference")])
def test_without_any_face_is_no_similarity(tmp_path: Path, ours: list[int], theirs: list[int], where: str) -> None:
    found = measure(tmp_path, ours, theirs)
    assert found.summary["ism"] == {"unavailable": f"no face was found in any {where} image"}
    assert found.summary["fdfr"]["value"] == ours.count(0) / 2
    assert found.unavailable == {"ism": f"no face was found in any {where} image"}


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("square", r"expected of .*:square None or a finite embedding \(D,\), got shape \(1, 1\)"),
        ("nothing", r"None or a finite embedding"),
        ("failing", r"failing failed on a uint8 image \(8, 8, 3\) with IndexError"),
        ("no_function", "gave a int; expected a function of an image"),
        ("missing", "AttributeError"),
        ("ragged", "expected embeddings of one length, got 1 and 2"),
    ],
)
def test_what_does_not_embed_is_refused(tmp_path: Path, backend: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(tmp_path, [30, 61], [30, 31], backend)
    with pytest.raises(ValueError, match="'faces' is unknown; expected 'insightface', 'facenet' or"):
        load_identity("faces")


@pytest.mark.parametrize("name", ["insightface", "facenet"])
def test_a_package_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("insightface", "insightface.app", "facenet_pytorch"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Unavailable, match=f"the package for {name} is missing or broken"):
        load_identity(name)


def test_insightface_takes_the_largest_face_and_the_channels_of_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    class FaceAnalysis:
        def __init__(self, **options: Any) -> None:
            assert set(options["allowed_modules"]) == {"detection", "recognition"}

        def prepare(self, ctx_id: int) -> None:
            assert ctx_id == -1, "the CPU"

        def get(self, image: np.ndarray) -> list[types.SimpleNamespace]:
            if not image.any():
                return []
            small = types.SimpleNamespace(bbox=[0, 0, 9, 1], normed_embedding=np.array([0.0, 0.0, 1.0]))
            return [small, types.SimpleNamespace(bbox=[2, 2, 6, 6], normed_embedding=image[0, 0].astype(float))]

    monkeypatch.setitem(sys.modules, "insightface", types.ModuleType("insightface"))
    app = types.ModuleType("insightface.app")
    app.FaceAnalysis = FaceAnalysis  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "insightface.app", app)
    backend = load_identity("insightface")
    image = np.zeros((8, 8, 3), np.uint8)
    assert backend(image) is None
    image[..., 0], image[..., 1] = 30, 40
    np.testing.assert_allclose(backend(image), [0, 0.8, 0.6])


def test_facenet_embeds_what_its_detector_cuts_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Detector:
        def __init__(self, **options: Any) -> None:
            assert options["select_largest"]

        def __call__(self, image: Any) -> torch.Tensor | None:
            pixels = torch.from_numpy(np.array(image)).float()
            return pixels.permute(2, 0, 1)[:, :2, :2] if pixels.any() else None

    class Network(torch.nn.Module):
        def __init__(self, pretrained: str) -> None:
            super().__init__()
            assert pretrained == "vggface2"

        def forward(self, faces: torch.Tensor) -> torch.Tensor:
            assert faces.shape == (1, 3, 2, 2) and not self.training
            return faces.mean(dim=(2, 3))

    package = types.ModuleType("facenet_pytorch")
    package.MTCNN, package.InceptionResnetV1 = Detector, Network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "facenet_pytorch", package)
    backend = load_identity("facenet")
    image = np.zeros((8, 8, 3), np.uint8)
    assert backend(image) is None
    image[..., 0], image[..., 1] = 30, 40
    np.testing.assert_allclose(backend(image), [0.6, 0.8, 0])

    def offline(**options: Any) -> None:
        raise RuntimeError("no route to host")

    package.MTCNN = offline  # type: ignore[attr-defined]
    with pytest.raises(Unavailable, match="facenet can't be loaded: RuntimeError: no route to host"):
        load_identity("facenet")


def test_drawn_pictures_agree_by_what_a_person_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    face, place = make_faces(1, seed=3)[0].image, make_landscapes(1, seed=3)[0].image
    backend, of_places = (
        load_identity("lordfast.demo.identity:faces"),
        load_identity("lordfast.demo.identity:landscapes"),
    )
    assert backend(place) is None and of_places(face) is None and of_places(place) is not None
    same = {"kind": "face", "hair_color": "black", "hair_style": "short", "skin": "light", "glasses": False}
    same |= {"beard": False, "hat": False, "expression": "neutral", "background": "blue"}
    seen = [same, same | {"expression": "smiling", "background": "red"}, same | {"hat": True, "beard": True}]
    monkeypatch.setattr(drawn, "shown", lambda classifier, images: [seen.pop(0)])
    rows = [backend(face) for _ in range(3)]
    assert all(row is not None for row in rows)
    cosines = [float(rows[0] @ row) for row in rows]  # type: ignore[operator]
    # Two of the six attributes that a person keeps are others.
    assert cosines == pytest.approx([1, 1, 4 / 6])
