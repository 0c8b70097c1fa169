"""CLIP of transformers: embeddings of pictures and texts, and how well a picture goes with a text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lordfast.evaluation.extraction import weights_key
from lordfast.evaluation.pretrained import complete, described, load_parts, pixel_values, unit_rows
from lordfast.pixels import Uint8Image

QUALITY = ("A good photo of a {}", "A bad photo of a {}")
"""The prompts between which the LoRD paper's CLIP-IQA decides; the hole is for what the pictures show."""
SHARPNESS = 100.0
"""What CLIP-IQA multiplies cosines by: where the temperature of OpenAI's CLIP models ended in training."""


class Clip:
    """Embeddings of length 1, float64 on the CPU.

    Attributes:
        cache_key: stands for what `images` depends on.
    """

    def __init__(self, source: str, device: torch.device | None = None) -> None:
        """Load a CLIP model with its tokenizer and image processor.

        Args:
            source: a folder or a hub id.
            device: CPU where None.

        Raises:
            Unavailable: `source` is neither, can't be read, or lacks weights.
        """
        import transformers

        # transformers 5 has a processor on Pillow beside the one that needs torchvision; before, the plain one was it.
        processor: Any = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
        parts = load_parts(
            source,
            "clip",
            model=partial(transformers.CLIPModel.from_pretrained, output_loading_info=True),
            tokenizer=transformers.CLIPTokenizer.from_pretrained,
            processor=processor.from_pretrained,
        )
        model = complete(parts["model"], source, "clip")
        self._tokenizer, self._processor = parts["tokenizer"], parts["processor"]
        what = described(self._processor.to_dict(), model.config.vision_config.to_dict())
        seen_by = torch.nn.ModuleList([model.vision_model, model.visual_projection])
        self.cache_key = weights_key(f"clip {what}", seen_by)
        self._device = device or torch.device("cpu")
        self._model: Any = torch.nn.Module.to(model, self._device)
        self._length: int = model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def images(self, images: Sequence[Uint8Image]) -> Tensor:
        """(B, D) of uint8 images (H, W, 3) of any sizes."""
        pixels = pixel_values(self._processor, images, self._device)
        found = self._model.vision_model(pixel_values=pixels).pooler_output
        return unit_rows(self._model.visual_projection(found))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(B, D) of texts, each cut to the length that the model takes; of one, what it is alone, unpadded."""
        rows = {text: self._text(text) for text in dict.fromkeys(texts)}
        return torch.cat([rows[text] for text in texts])

    def _text(self, text: str) -> Tensor:
        tokens = self._tokenizer([text], truncation=True, max_length=self._length, return_tensors="pt")
        found = self._model.text_model(
            input_ids=tokens["input_ids"].to(self._device), attention_mask=tokens["attention_mask"].to(self._device)
        )
        return unit_rows(self._model.text_projection(found.pooler_output))


class ClipScore(Clip):
    """max(100 cos(E_image, E_text), 0) of Hessel et al. 2021 in torchmetrics' scale, for one image and text at a time.

    Texts are cut to the length that the model takes.
    """

    def __call__(self, image: Uint8Image, text: str) -> float:
        """The score of a uint8 image (H, W, 3) and a text: 0 to 100."""
        return max(0.0, 100 * float(self.images([image])[0] @ self.texts([text])[0]))


def clip_iqa(images: Tensor, good: Tensor, bad: Tensor) -> Tensor:
    """CLIP-IQA (Wang et al. 2023) of images (N, D), with two texts' embeddings (D,): P(good), (N,), higher is better.

    exp(100 cos(i, good)) / (exp(100 cos(i, good)) + exp(100 cos(i, bad))), all embeddings of length 1.
    """
    return torch.sigmoid(SHARPNESS * (images @ (good - bad)))
