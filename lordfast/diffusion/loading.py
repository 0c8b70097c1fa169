"""Load the parts of a pipeline one by one, each complete and fitting, or with an error that names it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

# Weights, or the index of several files of them, as diffusers and transformers call them; the variant is mostly fp16.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(\w+))?\.(?:safetensors|bin)(?:\.index(?:\.(\w+))?\.json)?"
)


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

    parts: dict[str, Any] = {}
    for part, cls in classes.items():
        has_weights = issubclass(cls, nn.Module)
        try:
            with _quiet():
                loaded = (
                    _load_weights(cls, source, part) if has_weights else cls.from_pretrained(source, subfolder=part)
                )
        except UnpicklingError as error:
            raise ValueError(
                f"model: the {part} of {name} can't be loaded: its file holds something else than tensors, which is "
                "never run"
            ) from error
        except (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError) as error:
            raise ValueError(f"model: the {part} of {name} can't be loaded: {shortened(error)}") from error
        if has_weights:
            loaded, report = loaded
            for key, came, needed in sorted(report["mismatched_keys"]):
                raise ValueError(
                    f"model: the {part} of {name} can't be loaded: {key} has shape {tuple(came)}, and its config asks "
                    f"for {tuple(needed)}"
                )
            missing = sorted(report["missing_keys"])
            # The libraries would draw them at random, with a warning at most.
            if missing:
                raise ValueError(f"model: the {part} of {name} lacks {len(missing)} weights, such as {missing[0]}")
        parts[part] = loaded
    for part, tokenizer in parts.items():
        if part.startswith("tokenizer"):
            _check_tokenizer(name, part, tokenizer, parts[part.replace("tokenizer", "text_encoder")].config)
    return parts


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' progress bars and their reports of weights, which are checked here."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _load_weights(cls: Any, source: str, part: str) -> Any:
    """The part, and the report of what was loaded."""
    options: dict[str, Any] = {"subfolder": part, "output_loading_info": True}
    if "transformers" in cls.__module__:
        # Its error would refer to the report, which has the shapes.
        options["ignore_mismatched_sizes"] = True
    if Path(source).is_dir():
        return cls.from_pretrained(source, **weights_options(source, part), **options)
    try:
        return cls.from_pretrained(source, **options)
    except OSError:
        chosen = _options_of(_hub_files(source, part), source, part)
        if not chosen:
            raise
        return cls.from_pretrained(source, **chosen, **options)


def weights_options(folder: str | Path, part: str) -> dict[str, Any]:
    """``from_pretrained``'s options for the weights that a folder has of a part: the variant, such as fp16, where all
    are of one, and ``use_safetensors`` False where there are ``.bin`` files only, which are read as tensors alone.

    Raises:
        ValueError: there are several variants, and fp16 is none of them.
    """
    path = Path(folder, part)
    return _options_of((file.name for file in path.iterdir()) if path.is_dir() else (), folder, part)


def _options_of(files: Iterable[str], source: str | Path, part: str) -> dict[str, Any]:
    found = [(match[1] or match[2], ".safetensors" in match[0]) for match in map(_WEIGHTS.fullmatch, files) if match]
    variants = {variant for variant, _ in found}
    if not variants:
        return {}
    if None not in variants and "fp16" not in variants and len(variants) > 1:
        raise ValueError(
            f"{Path(source, part)} holds the variants {', '.join(sorted(variants))} of the weights; expected one of "
            "them, fp16, or weights without a variant"
        )
    chosen = None if None in variants else "fp16" if "fp16" in variants else variants.pop()
    options: dict[str, Any] = {} if chosen is None else {"variant": chosen}
    # diffusers would look for safetensors, and call the others unsafe.
    return options if (chosen, True) in found else options | {"use_safetensors": False}


def _hub_files(source: str, part: str) -> list[str]:
    """The names of a part's files: those of the local copy where it holds weights, else those on the hub."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        folder = Path(hf_hub_download(source, "model_index.json")).parent / part
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        if not any(map(_WEIGHTS.fullmatch, names)):
            there = [Path(name) for name in HfApi().list_repo_files(source)]
            names = [path.name for path in there if path.parent == Path(part)]
        return names
    except OSError:
        return []


def shortened(error: BaseException) -> str:
    """What an error of a library says, without the pages of names that may follow."""
    # diffusers' advice after these words is for programmers.
    said = str(error).split(" If you want to instead")[0]
    text = "\n".join(said.strip().splitlines()[:3]) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]} ..."


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
