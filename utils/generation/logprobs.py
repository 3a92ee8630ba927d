"""Log-likelihoods of tokens under the model's own logits, before any rule of sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.generation.sampling import check_finite


@dataclass(frozen=True)
class TokenLogprob:
    """A token's natural log-likelihood, and those of the likeliest tokens at its place.

    `top` is `((token, logprob), ...)`, the likeliest first; it need not have the token itself.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprob(logits: np.ndarray, token: int, count: int) -> TokenLogprob:
    """Of a token, from the logits `[vocab_size]` it was chosen from.

    Args:
        count: how many of the likeliest tokens are told; 0 is none.

    Raises:
        UserError: the logits are not finite numbers.
    """
    check_finite(logits)
    logits = np.asarray(logits, np.float32)
    largest = logits.max()
    total = float(largest) + float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))

    def of(token: int) -> float:
        return float(logits[token]) - total

    return TokenLogprob(token, of(token), tuple((t, of(t)) for t in _likeliest(logits, count)))


class PromptLogprobs:
    """Collects the log-likelihoods of a prompt's tokens, chunk by chunk.

    Attributes:
        found: for each token of the prompt done so far; None for the first, which follows nothing.
    """

    def __init__(self, ids: Sequence[int], count: int):
        self.found: list[TokenLogprob | None] = [None]
        self._ids, self._count = list(ids), count

    def add(self, logits: np.ndarray) -> None:
        """Takes the logits `[tokens, vocab_size]` after the next tokens of the prompt."""
        following = self._ids[len(self.found) : len(self.found) + len(logits)]
        self.found += [
            token_logprob(row, token, self._count)
            for row, token in zip(logits, following, strict=False)  # nothing follows the last
        ]


def _likeliest(logits: np.ndarray, count: int) -> list[int]:
    """The first of equals is the likelier, as in greedy sampling."""
    count = min(count, logits.size)
    if not count:
        return []
    if count == 1:
        return [int(np.argmax(logits))]
    least = np.partition(logits, -count)[-count]
    found = np.flatnonzero(logits >= least)
    return [int(t) for t in found[np.argsort(-logits[found], kind="stable")][:count]]
