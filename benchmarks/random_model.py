"""A program with random weights in place of a checkpoint's, and a tokenizer for all its tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from config import REPOSITORY, BloomConfig
from utils.checkpoints.random_weights import fill_randomly
from utils.generation import LanguageModel
from utils.generation.loading import build
from utils.generation.passes import Passes
from utils.generation.tokenizer import load_tokenizer


def random_model(config: BloomConfig, seed: int) -> LanguageModel:
    """A program of the configured shape with random weights."""
    session = build(config)
    fill_randomly(session, np.random.default_rng(seed))
    session.__enter__()
    tokenizer: Any = Folded(load_tokenizer(REPOSITORY / "models" / "bloom_tiny"))
    return LanguageModel(Passes(config, session), tokenizer)


class Folded:
    """A tokenizer whose tokens stand for all of a larger vocabulary, so that each has a text."""

    eos_token_id = -1  # none: every request runs to its last token

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.backend_tokenizer = tokenizer.backend_tokenizer
        self.all_special_ids: list[int] = []

    def __call__(self, text: str, **options: Any) -> Any:
        return self._tokenizer(text, **options)

    def convert_ids_to_tokens(self, token: int) -> str:
        return self._tokenizer.convert_ids_to_tokens(token % len(self._tokenizer))
