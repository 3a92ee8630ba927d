"""What the engine needs of passes, and what it tells of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np


class Prompt(NamedTuple):
    """What is left of a prompt: `tokens[start:]` of a slot."""

    slot: int
    tokens: Sequence[int]
    start: int


class EnginePasses(Protocol):
    """A session's passes, as the engine needs them; see `utils.generation.passes.Passes`."""

    batch_size: int
    sequence_length: int
    vocab_size: int
    verify_sizes: tuple[int, ...]

    def prefill_chunks(self, prompts: Sequence[Prompt]) -> list[tuple[int, np.ndarray | None]]:
        """Runs chunks of prompts, of the first one in any case, of others as there is room.

        How many tokens of each are done, and after the last the logits, `[vocab_size]`.
        """

    def score_chunk(self, slot: int, tokens: Sequence[int], start: int) -> np.ndarray:
        """Runs the first chunk of `tokens[start:]`; the logits after each of its tokens."""

    def decode(self, tokens: np.ndarray, positions: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Runs a token of each of some slots, `[tokens]`, of the first ones in any case, of the
        others as it pays; logits `[done, vocab_size]`."""

    def verify(self, slot: int, tokens: Sequence[int], position: int) -> np.ndarray:
        """Runs at most `verify_sizes[-1]` next tokens of one slot; logits after each of them."""


@dataclass(frozen=True)
class Step:
    """What a step did: the kind of its pass, the tokens that it ran, and the pass's seconds."""

    kind: Literal["prefill", "decode", "verify"]
    tokens: int
    seconds: float
