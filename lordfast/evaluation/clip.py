"""CLIP score: how well a picture goes with a text, by a CLIP model of transformers."""

from __future__ import annotations

from typing import Any

import torch

from lordfast.pixels import Uint8Image, check_image


class ClipScore:
    """max(100 cos(E_image, E_text), 0) of Hessel et al. 2021 in torchmetrics' scale, for one image and text at a time.

    Texts are cut to the length that the model takes.
    """

    def __init__(self, source: str, device: torch.device | None = None) -> None:
        """Load a CLIP model with its tokenizer and image processor.

        Args:
            source: a folder or a hub id.
            device: CPU where None.

        Raises:
            ValueError: `source` is neither, can't be read, or lacks weights.
        """
        import transformers
        from safetensors import SafetensorError

        # transformers 5 has a processor on Pillow beside the one that needs torchvision; before, the plain one was it.
        processor: Any = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
        try:
            loaded: Any = transformers.CLIPModel.from_pretrained(source, output_loading_info=True)
            model, report = loaded
            self._tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(source)
            self._processor: Any = processor.from_pretrained(source)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"clip: {source} can't be loaded: {reason}") from error
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise ValueError(f"clip: {source} lacks {len(missing)} weights, such as {missing[0]}")
        self._device = device or torch.device("cpu")
        self._model: Any = torch.nn.Module.to(model, self._device).eval()
        self._length: int = model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def __call__(self, image: Uint8Image, text: str) -> float:
        """The score of a uint8 image (H, W, 3) and a text: 0 to 100."""
        check_image(image)
        pixels = self._processor(images=image, return_tensors="pt")["pixel_values"]
        tokens = self._tokenizer([text], truncation=True, max_length=self._length, return_tensors="pt")
        found = self._model(
            pixel_values=pixels.to(self._device),
            input_ids=tokens["input_ids"].to(self._device),
            attention_mask=tokens["attention_mask"].to(self._device),
        )
        cosine = torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds)
        return max(0.0, 100 * float(cosine))
