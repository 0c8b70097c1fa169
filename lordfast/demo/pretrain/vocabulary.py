"""A CLIP tokenizer that knows the captions' words, each as one token."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from lordfast.data.faces import BACKGROUNDS, EXPRESSIONS, HAIR_COLORS, HAIR_STYLES, SKINS
from lordfast.data.landscapes import GROUNDS, SEASONS, TIMES

RARE_TOKEN = "sks"
WORDS = tuple(
    sorted(
        {
            *["a", "an", "photo", "of", "with", "and", "on", "at", "person", "landscape"],
            *[
                "bald",
                "head",
                "hair",
                "skin",
                "glasses",
                "beard",
                "hat",
                "background",
                "mountains",
                "sun",
                "moon",
                "trees",
            ],
            *HAIR_COLORS,
            *HAIR_STYLES,
            *SKINS,
            *EXPRESSIONS,
            *BACKGROUNDS,
            *TIMES,
            *SEASONS,
            *GROUNDS,
            RARE_TOKEN,
        }
    )
)
MAX_LENGTH = 28
"""The longest caption has 24 words; then the rare token, and two marks around the text."""


def make_tokenizer() -> Any:
    """A `CLIPTokenizer` of about 700 tokens: bytes, pieces of WORDS, WORDS.

    Raises:
        RuntimeError: byte-pair merging did not make a token of each word.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator([" ".join(WORDS)], trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = {token: index for index, token in enumerate(tokens)}
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
        (Path(folder) / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (Path(folder) / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH}), encoding="utf-8"
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    split = [word for word in WORDS if len(tokenizer(word).input_ids) != 3]
    if split:
        raise RuntimeError(f"the tokenizer splits {', '.join(split)}; expected one token each")
    return tokenizer
