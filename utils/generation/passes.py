"""The passes that a token loop makes with the program, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from popxl import DeviceToHostStream

from config import BloomConfig
from modelling.program import NO_LOGITS, TOKEN_PASS, InferenceSession, chunk_sizes, verify_sizes
from utils.generation.replicas import Replicas

PROMPT_LOGITS = 1
"""Rows of logits that a prompt pass gives; others only fill the output up."""


class Passes:
    """One session's passes, in numpy; use it inside `with session:`.

    Attributes:
        batch_size: rows of the KV cache.
        sequence_length: tokens that a row holds.
        vocab_size: of the logits.
        verify_sizes: tokens that a verify pass may have, ascending; none without look-up.
    """

    def __init__(self, config: BloomConfig, session: InferenceSession):
        self.config, self.session = config, session
        self.batch_size = config.execution.batch_size
        self.sequence_length = config.model.sequence_length
        self.vocab_size = config.model.vocab_size
        self.chunks = chunk_sizes(config)
        self.verify_sizes = verify_sizes(config)
        self.replicas = Replicas(config, session)

    def prompt(
        self,
        row: int,
        tokens: Sequence[int],
        start: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Run `tokens[start:]` of a row, whose first `start` tokens are in its cache.

        Args:
            progress: called with the number of tokens done, after each chunk.

        Returns:
            float32 logits after the last token, `(vocab_size,)`.

        Raises:
            ValueError: for a row that does not exist, no token, or more than fit the context.
        """
        for count, logits in self.prompt_chunks(row, tokens, start):
            if progress:
                progress(count)
            if logits is not None:
                return logits
        raise AssertionError("the last chunk has logits")

    def prompt_chunks(
        self, row: int, tokens: Sequence[int], start: int = 0
    ) -> Iterator[tuple[int, np.ndarray | None]]:
        """`prompt` a chunk at a time: other rows' passes may be run between two of them.

        A token pass meanwhile writes to this row too: its position must be the number of tokens
        done, where the next chunk overwrites it.

        Yields:
            After each chunk, the number of tokens it did, and None or, after the last one, the
            float32 logits `(vocab_size,)`.

        Raises:
            ValueError: when called, as `prompt` does.
        """
        self._check_prompt(row, len(tokens), start)
        return self._chunks(row, tokens, start)

    def _chunks(
        self, row: int, tokens: Sequence[int], done: int
    ) -> Iterator[tuple[int, np.ndarray | None]]:
        while done < len(tokens):
            number, size = self._chunk(len(tokens) - done)
            first = min(done, self.sequence_length - size)  # back, where it would stick out
            end = min(first + size, len(tokens))
            complete = end == len(tokens)
            last = end - first - 1 if complete else NO_LOGITS
            logits = self._run(tokens[first:end], [first], row, last, number, PROMPT_LOGITS)
            yield end - done, logits[0] if complete else None
            done = end

    def token(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """One token for every row.

        Args:
            tokens, positions: int32 `(batch_size,)`; an idle row's position is its length, where
                what it writes to the cache is overwritten before it is read.

        Returns:
            float32 logits, `(batch_size, vocab_size)`.
        """
        return self._run(tokens, positions, 0, 0, TOKEN_PASS, self.batch_size)

    def verify(self, row: int, tokens: Sequence[int], position: int) -> np.ndarray:
        """Run a token and those proposed to follow it, the first of them at `position` of a row.

        A proposal that proves wrong leaves nothing to undo: whatever is run at its position next
        overwrites what it wrote to the cache, and tokens before it do not look there.

        Returns:
            float32 logits after each token, `(len(tokens), vocab_size)`.

        Raises:
            ValueError: for more tokens than `verify_sizes` has a pass for, or a pass that would
                stick out of the context.
        """
        sizes = [size for size in self.verify_sizes if size >= len(tokens)]
        if not sizes or position + sizes[0] > self.sequence_length:
            raise ValueError(
                f"no pass of {self.verify_sizes} tokens holds {len(tokens)} at {position} of "
                f"{self.sequence_length}"
            )
        number = 1 + len(self.chunks) + self.verify_sizes.index(sizes[0])
        output = self.session.outputs[f"verified_{sizes[0]}"]
        return self._run(tokens, [position], row, 0, number, len(tokens), output)

    def warm_up(self, times: int = 1) -> None:
        """Run every pass: what is made at first use is there then. Rows keep no tokens.

        Args:
            times: 2 for what a runtime makes of a pass when it is run again, too.
        """
        for _ in range(times):
            for _, run in self.each():
                run()

    def each(self) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
        """The name of every pass, as of its graph, and what runs it. Rows keep no tokens."""
        yield "token", partial(self.token, *np.zeros((2, self.batch_size), np.int32))
        for size in self.chunks:
            yield f"prompt_{size}", partial(self.prompt, 0, [0] * size)
        for size in self.verify_sizes:
            yield f"verify_{size}", partial(self.verify, 0, [0] * size, 0)

    def _chunk(self, tokens: int) -> tuple[int, int]:
        """The pass for what is left: the smallest chunk that holds it, else the largest."""
        for number, size in enumerate(self.chunks, start=1):
            if size >= tokens:
                return number, size
        return len(self.chunks), self.chunks[-1]

    def _check_prompt(self, row: int, length: int, start: int) -> None:
        if not 0 <= row < self.batch_size:
            raise ValueError(f"row {row} is outside the batch of {self.batch_size}")
        if not 0 <= start < length:
            raise ValueError(f"there is no token to run: {length} given, {start} done before")
        if length > self.sequence_length:
            raise ValueError(
                f"{length} tokens are more than the context of {self.sequence_length} holds"
            )

    def _run(
        self,
        tokens: Sequence[int] | np.ndarray,
        positions: Sequence[int] | np.ndarray,
        row: int,
        last: int,
        chosen_pass: int,
        count: int,
        output: DeviceToHostStream | None = None,
    ) -> np.ndarray:
        """The logits of a pass: what it stores to `output`, which is the `logits` by default.

        Args:
            count: of the output's first rows, those that are logits.

        Returns:
            `(count, vocab_size)`; no rows where it has no logits.
        """
        inputs = self.session.inputs
        arrays = {
            inputs.tokens: _padded(tokens, inputs.tokens.shape[0]),
            inputs.positions: _padded(positions, self.batch_size),
            inputs.row: np.array(row, np.int32),
            inputs.last: np.array(last, np.int32),
            inputs.chosen_pass: np.array(chosen_pass, np.int32),
        }
        if output is None and last != NO_LOGITS:
            output = self.session.outputs.logits
        parts = self.replicas.run(arrays, output, count)
        return self._joined(parts) if parts is not None else np.empty((0, self.vocab_size))

    def _joined(self, parts: np.ndarray) -> np.ndarray:
        """`(rows, vocab_size)` from the parts of the vocabulary that lie over tp1."""
        logits = parts[0] if len(parts) == 1 else np.concatenate(list(parts), axis=-1)
        return logits[:, : self.vocab_size]


def _padded(values: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    array = np.zeros(size, np.int32)
    array[: len(values)] = values
    return array
