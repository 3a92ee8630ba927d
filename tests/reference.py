"""An independent oracle for tests: transformers' BLOOM behind the interface of `Passes`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import BloomConfig, BloomForCausalLM

CHUNK = 4


class TransformersPasses:
    """`Passes` on a transformers model, without a cache: each pass computes the whole row again.

    A chunk of a prompt has 4 tokens.

    It remembers the tokens of each row by position, as a cache does their keys and values.
    """

    verify_sizes: tuple[int, ...] = ()
    together = 1

    def __init__(
        self,
        model: BloomForCausalLM,
        batch_size: int = 1,
        sequence_length: int = 64,
        verify_sizes: tuple[int, ...] = (),
    ):
        self.model = model.eval()
        self.verify_sizes = verify_sizes
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.vocab_size = model.config.vocab_size
        self._rows = np.zeros((batch_size, sequence_length), np.int64)

    def prefill_chunk(
        self, slot: int, tokens: Sequence[int], start: int
    ) -> tuple[int, np.ndarray | None]:
        end = min(start + CHUNK, len(tokens))
        self._rows[slot, start:end] = tokens[start:end]
        return end - start, self._logits(slot, end) if end == len(tokens) else None

    def prefill_chunks(
        self, prompts: Sequence[tuple[int, Sequence[int], int]]
    ) -> list[tuple[int, np.ndarray | None]]:
        """A chunk of the first prompts, of `together` at most."""
        done = [self.prefill_chunk(*prompt) for prompt in prompts[: self.together]]
        return [*done, *[(0, None)] * (len(prompts) - len(done))]

    def score_chunk(self, slot: int, tokens: Sequence[int], start: int) -> np.ndarray:
        """Each place is computed on its own."""
        end = min(start + CHUNK, len(tokens))
        self._rows[slot, start:end] = tokens[start:end]
        return np.stack([self._logits(slot, place + 1) for place in range(start, end)])

    def decode(self, tokens: np.ndarray, positions: np.ndarray, slots: np.ndarray) -> np.ndarray:
        if any(given.dtype != np.int32 for given in (tokens, positions, slots)):
            raise TypeError(f"not int32: {tokens.dtype}, {positions.dtype}, {slots.dtype}")
        self._rows[slots, positions] = tokens
        each = zip(slots, positions, strict=True)
        return np.stack([self._logits(row, position + 1) for row, position in each])

    def verify(self, slot: int, tokens: Sequence[int], position: int) -> np.ndarray:
        """Each place is computed on its own, from what the row has up to it."""
        if len(tokens) > self.verify_sizes[-1] or position + len(tokens) > self.sequence_length:
            raise ValueError(f"{len(tokens)} tokens at {position} fit no pass or stick out")
        self._rows[slot, position : position + len(tokens)] = tokens
        return np.stack([self._logits(slot, position + i + 1) for i in range(len(tokens))])

    @torch.no_grad()
    def _logits(self, row: int, length: int) -> np.ndarray:
        ids = torch.from_numpy(self._rows[row : row + 1, :length].copy())
        return self.model(ids, use_cache=False).logits[0, -1].float().numpy()


def random_model(vocab_size: int, seed: int = 0) -> BloomForCausalLM:
    """A small BLOOM with random weights, large and untied so that its text does not repeat."""
    torch.manual_seed(seed)
    config = BloomConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.5,
        tie_word_embeddings=False,
    )
    return BloomForCausalLM(config).eval()
