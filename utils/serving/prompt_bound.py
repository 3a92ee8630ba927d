"""How many tokens a text has at least, without tokenizing it."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import models

from utils.generation.text import BYTE_OF, piece_bytes


class PromptBound:
    """A bound from a byte-level BPE's vocabulary.

    Tokens of such a text are its bytes, cut up. A token has at most so many of each byte, and the
    text has a number of them: it has at least as many tokens as the one by the other.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def least_tokens(self, text: str) -> int:
        """A number of tokens that the text has or exceeds; 0 where nothing is known."""
        if self._most is None:
            return 0
        held = np.bincount(
            np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8), minlength=256
        )
        return int(np.max(-(-np.append(held, held.sum()) // self._most)))

    @cached_property
    def _most(self) -> np.ndarray | None:
        """How many of each byte the token has that has most of it, 1 or more, and how many bytes
        the longest token has: `[257]`.

        None where a text's bytes need not be its tokens': one with a normalizer, with added tokens
        that take spaces around them away, or with bytes that are no token.
        """
        backend = self._tokenizer.backend_tokenizer
        added = backend.get_added_tokens_decoder().values()
        if not _keeps_bytes(backend) or any(token.lstrip or token.rstrip for token in added):
            return None
        pieces = backend.get_vocab(with_added_tokens=False)
        if not BYTE_OF.keys() <= pieces.keys():
            return None
        most = np.ones(257, np.int64)
        for piece in [*map(piece_bytes, pieces), *(t.content.encode() for t in added)]:
            if len(piece) > 1:
                counts = np.bincount(np.frombuffer(piece, np.uint8), minlength=257)
                counts[256] = len(piece)
                np.maximum(most, counts, out=most)
        return most


def _keeps_bytes(backend: Any) -> bool:
    """Whether nothing is changed or left out of a text before it is cut into tokens."""
    if backend.normalizer is not None or backend.pre_tokenizer is None:
        return False
    before = json.loads(backend.pre_tokenizer.__getstate__())
    steps = before.get("pretokenizers", [before])
    return (
        isinstance(backend.model, models.BPE)
        and steps[-1]["type"] == "ByteLevel"
        and all(_keeps(step) for step in steps)
    )


def _keeps(step: dict[str, Any]) -> bool:
    if step["type"] == "Split":
        return step["behavior"] != "Removed"
    return step["type"] in ("ByteLevel", "Digits")
