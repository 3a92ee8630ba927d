"""The passes that the engine runs on a session, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from config import BloomConfig
from modelling.program import (
    DECODE,
    NO_LOGITS,
    InferenceSession,
    chunk_sizes,
    score_sizes,
    verify_sizes,
)
from utils.generation.replicas import Replicas
from utils.setup import UserError


class Passes:
    """One session's passes, in numpy; use it inside `with session:`.

    Attributes:
        batch_size: slots of the KV cache.
        sequence_length: tokens that a slot holds.
        vocab_size: of the logits.
        verify_sizes: tokens that a verify pass may have, ascending; none without look-up.
        score_sizes: tokens of the scoring pass; none without one.
    """

    def __init__(self, config: BloomConfig, session: InferenceSession):
        self.config, self.session = config, session
        self.batch_size = config.execution.batch_size
        self.sequence_length = config.model.sequence_length
        self.vocab_size = config.model.vocab_size
        self.chunks = chunk_sizes(config)
        self.verify_sizes = verify_sizes(config)
        self.score_sizes = score_sizes(config)
        self.replicas = Replicas(config, session)

    def prefill(self, slot: int, tokens: Sequence[int], start: int = 0) -> np.ndarray:
        """Run `tokens[start:]` of a slot, whose first `start` tokens are in its cache.

        Returns:
            float32 logits after the last token, `(vocab_size,)`.

        Raises:
            ValueError: for a slot that does not exist, no token, or more than fit the context.
        """
        while True:
            count, logits = self.prefill_chunk(slot, tokens, start)
            start += count
            if logits is not None:
                return logits

    def prefill_chunk(
        self, slot: int, tokens: Sequence[int], start: int
    ) -> tuple[int, np.ndarray | None]:
        """Run the first chunk of `tokens[start:]`; other slots' passes may come before the next.

        A decode pass meanwhile writes to this slot too: its position must be the number of tokens
        done, where the next chunk overwrites it.

        Returns:
            The number of tokens done, and after the last of all the float32 logits
            `(vocab_size,)`; after other chunks None, and no logits are computed or moved.

        Raises:
            ValueError: as `prefill` does.
        """
        self._check_prompt(slot, len(tokens), start)
        number, size = self._chunk(len(tokens) - start)
        first = min(start, self.sequence_length - size)  # back, where it would stick out
        end = min(first + size, len(tokens))
        complete = end == len(tokens)
        last = end - first - 1 if complete else NO_LOGITS
        output = "prefill" if complete else None
        logits = self._run(tokens[first:end], [first], number, output, slot=slot, last=last)
        return end - start, logits[0] if complete else None

    def decode(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """One token for every slot.

        Args:
            tokens, positions: int32 `(batch_size,)`; an idle slot's position is its length, where
                what it writes to the cache is overwritten before it is read.

        Returns:
            float32 logits, `(batch_size, vocab_size)`.
        """
        return self._run(tokens, positions, DECODE, "decode", self.batch_size)

    def verify(self, slot: int, tokens: Sequence[int], position: int) -> np.ndarray:
        """Run a token and those proposed to follow it, the first of them at `position` of a slot.

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
        return self._run(tokens, [position], number, f"verify_{sizes[0]}", len(tokens), slot=slot)

    def score_chunk(self, slot: int, tokens: Sequence[int], start: int) -> np.ndarray:
        """Run the first chunk of `tokens[start:]`, as `prefill_chunk` does.

        Returns:
            float32 logits after each of its tokens, `(tokens, vocab_size)`.

        Raises:
            UserError: the program was built without a pass for it.
            ValueError: as `prefill` does.
        """
        self._check_prompt(slot, len(tokens), start)
        if not self.score_sizes:
            raise UserError("log-likelihoods of a prompt need --score_tokens 1 or more, not 0")
        (size,) = self.score_sizes
        first = min(start, self.sequence_length - size)  # back, where it would stick out
        end = min(first + size, len(tokens))
        number = 1 + len(self.chunks) + len(self.verify_sizes)
        rows = self._run(
            tokens[first:end], [first], number, f"score_{size}", end - first, slot=slot
        )
        return rows[start - first :]

    def warm_up(self, times: int = 1) -> None:
        """Run every pass: what is made at first use is there then. Slots keep no tokens.

        Args:
            times: 2 for what a runtime makes of a pass when it is run again, too.
        """
        for _ in range(times):
            for _, run in self.each():
                run()

    def each(self) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
        """The name of every pass, as of its graph, and what runs it. Slots keep no tokens."""
        yield "decode", partial(self.decode, *np.zeros((2, self.batch_size), np.int32))
        for size in self.chunks:
            yield f"prefill_{size}", partial(self.prefill, 0, [0] * size)
        for size in self.verify_sizes:
            yield f"verify_{size}", partial(self.verify, 0, [0] * size, 0)
        for size in self.score_sizes:
            yield f"score_{size}", partial(self.score_chunk, 0, [0] * size, 0)

    def _chunk(self, tokens: int) -> tuple[int, int]:
        """The pass for what is left: the smallest chunk that holds it, else the largest."""
        for number, size in enumerate(self.chunks, start=1):
            if size >= tokens:
                return number, size
        return len(self.chunks), self.chunks[-1]

    def _check_prompt(self, slot: int, length: int, start: int) -> None:
        if not 0 <= slot < self.batch_size:
            raise ValueError(f"slot {slot} is outside the batch of {self.batch_size}")
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
        number: int,
        output: str | None,
        count: int = 1,
        *,
        slot: int = 0,
        last: int = 0,
    ) -> np.ndarray:
        """The logits of the pass of a number.

        Args:
            output: the stream that it stores to; None where it has no logits.
            count: of the stream's first rows, those that are wanted.

        Returns:
            `(count, vocab_size)`; no rows where it has no logits.
        """
        inputs = self.session.inputs
        arrays = {
            inputs.tokens: _padded(tokens, inputs.tokens.shape[0]),
            inputs.positions: _padded(positions, self.batch_size),
            inputs.slot: np.array(slot, np.int32),
            inputs.last: np.array(last, np.int32),
            inputs.chosen_pass: np.array(number, np.int32),
        }
        stream = None if output is None else self.session.outputs[output]
        parts = self.replicas.run(arrays, stream, count)
        return self._joined(parts) if parts is not None else np.empty((0, self.vocab_size))

    def _joined(self, parts: np.ndarray) -> np.ndarray:
        """`(rows, vocab_size)` from the parts of the vocabulary that lie over tp1."""
        logits = parts[0] if len(parts) == 1 else np.concatenate(list(parts), axis=-1)
        return logits[:, : self.vocab_size]


def _padded(values: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    array = np.zeros(size, np.int32)
    array[: len(values)] = values
    return array
