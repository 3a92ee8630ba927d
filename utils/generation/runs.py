"""Runs of a session's passes: numpy arrays to its input streams, logits from its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from config import BloomConfig
from modelling.pass_sizes import NO_LOGITS, numbered_passes
from modelling.program import InferenceSession
from utils.generation.replicas import Replicas

Numbers = Sequence[int] | np.ndarray


class Runs:
    """Runs a session's passes by kind and size, on all its replicas."""

    def __init__(self, config: BloomConfig, session: InferenceSession):
        self.replicas = Replicas(config, session)
        self._session, self.vocab_size = session, config.model.vocab_size
        self._numbers = {of: number for number, of in enumerate(numbered_passes(config))}

    def knows(self, kind: str, size: int) -> bool:
        """Whether there is such a pass."""
        return (kind, size) in self._numbers

    def run(
        self,
        kind: str,
        size: int,
        tokens: Numbers,
        positions: Numbers,
        slots: Numbers,
        *,
        output: str | None = None,
        count: int = 1,
        last: Sequence[int] = (),
    ) -> np.ndarray:
        """The logits of a pass.

        Args:
            output: the stream that it stores to; None where it has no logits.
            count: of the stream's first rows, those that are wanted.
            last: tokens of the pass whose logits it is to store, where it does not those of all.

        Returns:
            `(count, vocab_size)`; no rows where it has no logits.
        """
        inputs: Any = self._session.inputs
        arrays = {
            inputs.tokens: _padded(tokens, inputs.tokens.shape[0]),
            inputs.positions: _padded(positions, inputs.positions.shape[0]),
            inputs.slots: _padded(slots, inputs.slots.shape[0]),
            inputs.last: _padded(last, inputs.last.shape[0], NO_LOGITS),
            inputs.chosen_pass: np.array(self._numbers[kind, size], np.int32),
        }
        stream = None if output is None else self._session.outputs[output]
        parts = self.replicas.run(arrays, stream, count)
        return self._joined(parts) if parts is not None else np.empty((0, self.vocab_size))

    def _joined(self, parts: np.ndarray) -> np.ndarray:
        """`(rows, vocab_size)` from the parts of the vocabulary that lie over tp1."""
        logits = parts[0] if len(parts) == 1 else np.concatenate(list(parts), axis=-1)
        return logits[:, : self.vocab_size]


def _padded(values: Numbers, size: int, value: int = 0) -> np.ndarray:
    array = np.full(size, value, np.int32)
    array[: len(values)] = values
    return array
