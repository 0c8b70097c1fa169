"""Load the parts of a pipeline one by one, each complete and fitting, or with an error that names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def load_parts(source: str, name: str, classes: Mapping[str, Any]) -> dict[str, Any]:
    """What the folder or hub id `source` holds of each part in `classes`, by the class's ``from_pretrained``.

    Args:
        name: what messages call the model.
        classes: part (which is its subfolder) -> class.

    Raises:
        ValueError: a part is missing, unreadable or incomplete; the message names it.
    """
    from safetensors import SafetensorError
    from torch import nn
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    parts: dict[str, Any] = {}
    for part, cls in classes.items():
        has_weights = issubclass(cls, nn.Module)
        options = {"output_loading_info": True} if has_weights else {}
        try:
            loaded = cls.from_pretrained(source, subfolder=part, **options)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"model: the {part} of {name} can't be loaded: {error}") from error
        if has_weights:
            loaded, report = loaded
            missing = sorted(report["missing_keys"])
            # The libraries would draw them at random, with a warning at most.
            if missing:
                raise ValueError(f"model: the {part} of {name} lacks {len(missing)} weights, such as {missing[0]}")
        parts[part] = loaded
    for part, tokenizer in parts.items():
        if part.startswith("tokenizer"):
            _check_tokenizer(name, part, tokenizer, parts[part.replace("tokenizer", "text_encoder")].config)
    return parts


def _check_tokenizer(name: str, part: str, tokenizer: Any, config: Any) -> None:
    # Where its files are missing, transformers makes an empty tokenizer without a limit on the length. T5 takes texts
    # of any length.
    longest = getattr(config, "max_position_embeddings", None)
    if len(tokenizer) > config.vocab_size or (longest is not None and tokenizer.model_max_length > longest):
        raise ValueError(
            f"model: the {part} of {name} is missing or not its text encoder's: it knows {len(tokenizer)} tokens "
            f"and makes texts of up to {tokenizer.model_max_length}; the encoder knows {config.vocab_size} and takes "
            f"{'any' if longest is None else longest}"
        )
