"""What programs may ask of a request besides the settings that people have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class Constraint(Protocol):
    """Which tokens may come next; one object a request, as it follows the text."""

    def mask(self) -> np.ndarray:
        """Of each token of the vocabulary whether it may come next, bool `[vocab_size]`.

        Raises:
            UserError: nothing may, or finding out takes too much.
        """

    def advance(self, token: int) -> None:
        """The token was chosen."""

    @property
    def complete(self) -> bool:
        """Whether the text is whole and nothing may follow it."""


@dataclass(frozen=True)
class Extras:
    """What a request may be asked besides sampling and stop strings.

    Attributes:
        logprobs: tell each token's log-likelihood, and those of so many likeliest tokens beside
            it; None is neither.
        score_prompt: tell those of the prompt's tokens, too.
        logit_bias: added to the logits of these tokens.
        ignore_eos: the tokens that end a text do not end this one.
        stop_token_ids: further tokens that end it.
        constraint: what the text must be like.
    """

    logprobs: int | None = None
    score_prompt: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    constraint: Constraint | None = None

    def shaped(self, logits: np.ndarray) -> np.ndarray:
        """Logits `[vocab_size]` with the bias, and -inf where the constraint allows no token."""
        if not self.logit_bias and self.constraint is None:
            return logits
        shaped = np.array(logits, np.float32)
        if self.logit_bias:
            shaped[list(self.logit_bias)] += np.array(list(self.logit_bias.values()), np.float32)
        if self.constraint is not None:
            shaped[~self.constraint.mask()] = -np.inf
        return shaped
