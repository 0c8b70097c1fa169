"""Tiny random networks in the formats that people download, built from a config and saved to a folder."""

from pathlib import Path

import pytest
import torch

from lordfast.diffusion import resolve_model

CLIP_MEAN, CLIP_STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model with 8 dimensions that sees 32 x 32 pixels and reads 20 tokens."""
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
    processor(**options, image_mean=CLIP_MEAN, image_std=CLIP_STD).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision transformer with 16 dimensions that sees 32 x 32 pixels, without the pooler that transformers adds."""
    import transformers

    folder = tmp_path_factory.mktemp("dino")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8)
        model = transformers.ViTModel(config, add_pooling_layer=False)
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape)
        model.save_pretrained(folder)
    processor = getattr(transformers, "ViTImageProcessorPil", transformers.ViTImageProcessor)
    processor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
