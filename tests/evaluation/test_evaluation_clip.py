"""CLIP scores of a tiny random CLIP against its parts put together here, and weights that are not there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lordfast.data import make_faces
from lordfast.diffusion import resolve_model
from lordfast.evaluation.clip import ClipScore

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
FACE = make_faces(1, seed=3)[0].image


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(Path(resolve_model("demo")) / "tokenizer")
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 20,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.CLIPConfig(
            text_config={**sizes, **text},
            vision_config={**sizes, "image_size": 32, "patch_size": 8},
            projection_dim=8,
        )
        model = transformers.CLIPModel(config)
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape)
        model.save_pretrained(folder)
    processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    options = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor(**options, image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return folder


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
