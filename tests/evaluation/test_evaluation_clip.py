"""CLIP scores of a tiny random CLIP against its parts put together here, and weights that are not there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lordfast.data import make_faces
from lordfast.evaluation.clip import QUALITY, Clip, ClipScore, clip_iqa

# As `clip_folder` was saved.
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
FACE = make_faces(1, seed=3)[0].image


def by_hand(folder: Path, image: np.ndarray, text: str) -> float:
    import transformers

    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    small = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) / 255
    pixels = torch.tensor((small - MEAN) / STD, dtype=torch.float32).permute(2, 0, 1)[None]
    ids = torch.tensor([tokenizer(text).input_ids[:20]])
    with torch.no_grad():
        of_image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)[0]
        of_text = model.text_projection(model.text_model(input_ids=ids).pooler_output)[0]
    return 100 * float(of_image @ of_text / (of_image.norm() * of_text.norm()))


def test_it_is_the_cosine_of_the_two_embeddings(clip_folder: Path) -> None:
    score = ClipScore(str(clip_folder))
    expected, found = [], []
    for image in (FACE, 255 - FACE, FACE[:, ::-1].copy()):
        for text in ("a photo of a person", "a mountain", "hair"):
            expected.append(by_hand(clip_folder, image, text))
            found.append(score(image, text))
    assert found == pytest.approx([max(0.0, value) for value in expected], abs=1e-3)
    assert min(expected) < 0 < max(found) < 100 and len({round(value, 3) for value in expected}) == 9


def test_long_texts_are_cut(clip_folder: Path) -> None:
    score = ClipScore(str(clip_folder))
    assert 0 <= score(FACE, "a photo of a person " * 40) <= 100


def test_quality_is_the_softmax_of_the_two_prompts(clip_folder: Path) -> None:
    images = [FACE, 255 - FACE, FACE[:, ::-1].copy()]
    prompts = [text.format("person") for text in QUALITY]
    assert prompts == ["A good photo of a person", "A bad photo of a person"]
    clip = Clip(str(clip_folder))
    embedded, (good, bad) = clip.images(images), clip.texts(prompts)
    for image, row in zip(images, embedded, strict=True):
        for text, direction in zip(prompts, (good, bad), strict=True):
            assert 100 * float(row @ direction) == pytest.approx(by_hand(clip_folder, image, text), abs=1e-3)
    # A random network is all too sure of itself: two texts that are nearly the same.
    bad = torch.nn.functional.normalize(0.98 * good + 0.02 * bad, dim=0)
    odds = np.exp(100 * (embedded @ torch.stack([good, bad], dim=1)).numpy())
    np.testing.assert_allclose(clip_iqa(embedded, good, bad), odds[:, 0] / odds.sum(axis=1), rtol=1e-9)
    assert float(clip_iqa(embedded, good, bad).std()) > 0.005 and float(clip_iqa(embedded, bad, good).max()) < 0.99


def test_embeddings_do_not_depend_on_their_company_and_go_by_what_is_seen(clip_folder: Path) -> None:
    clip = Clip(str(clip_folder))
    wide = np.tile(FACE, (1, 2, 1))
    together = clip.images([FACE, wide, 255 - FACE])
    assert torch.allclose(together.norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(together[1], clip.images([wide])[0], atol=1e-6)
    texts = clip.texts(["hair", "a much longer text about hair", "hair"])
    assert torch.equal(texts[0], texts[2]) and torch.equal(texts[1], clip.texts(["a much longer text about hair"])[0])


def test_weights_that_are_not_there(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="clip: .*nothing can't be loaded: "):
        ClipScore(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="clip: no-such-org/clip can't be loaded: "):
        ClipScore("no-such-org/clip")
    from safetensors.torch import load_file, save_file

    for path in clip_folder.iterdir():
        if path.name != "model.safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(clip_folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"clip: .* lacks 1 weights, such as visual_projection\.weight"):
        ClipScore(str(tmp_path))
