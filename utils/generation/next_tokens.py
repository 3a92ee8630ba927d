"""The likeliest next tokens of a prompt, and how a token is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.generation.sampling import check_finite
from utils.generation.text import TextStream, special_ids
from utils.generation.ticket import Work

COUNT = 10
VISIBLE = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"})
"""Characters that could not be told from nothing."""
REPLACEMENT = "\ufffd"
"""What bytes decode to that are no whole character."""


@dataclass(frozen=True)
class LikelyToken:
    """A token that may come next.

    `text` is what it adds to the prompt, '' where it has no text of its own: a special token, or a
    part of a character. `shown` names it in any case.
    """

    token: int
    text: str
    shown: str
    probability: float


class NextTokens(Work):
    """The engine's work for one look at what comes next: prefill and no decoding.

    Its one event is a list of `COUNT` `LikelyToken`, the likeliest first.
    """

    def __init__(self, ids: Sequence[int], tokenizer: Any, count: int = COUNT):
        self.ids = list(ids)
        self._tokenizer, self._count = tokenizer, count

    def accept(self, logits: np.ndarray) -> list[LikelyToken]:
        """The likeliest of the logits `[vocab_size]`.

        Raises:
            UserError: the logits are not finite numbers.
        """
        self.finish_reason = "done"
        check_finite(logits)
        weights = np.exp(logits - logits.max(), dtype=np.float64)
        count = min(self._count, weights.size)
        largest = np.argpartition(weights, -count)[-count:]  # sorting a whole vocabulary is slow
        order = largest[np.argsort(-weights[largest], kind="stable")]
        chances = weights[order] / weights.sum()
        return [
            _likely(self._tokenizer, int(token), float(chance))
            for token, chance in zip(order, chances, strict=True)
        ]


def _likely(tokenizer: Any, token: int, probability: float) -> LikelyToken:
    stream = TextStream(tokenizer)
    text = stream.push(token)
    if text and REPLACEMENT not in text + stream.flush():
        return LikelyToken(token, text, text.translate(VISIBLE), probability)
    special = token in special_ids(tokenizer)
    shown = tokenizer.convert_ids_to_tokens(token) if special else f"part of a character, {token}"
    return LikelyToken(token, "", shown, probability)
