"""The passes that the engine runs on a session, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from config import BloomConfig
from config.costs import prefix_blocks
from modelling.prefix_blocks import kept_sizes
from modelling.program import (
    NO_LOGITS,
    InferenceSession,
    chunk_sizes,
    numbered_passes,
    score_sizes,
    verify_sizes,
)
from utils.generation.prefixes import Chunk, PrefixCache, prefixes_of
from utils.generation.replicas import Replicas
from utils.setup import UserError

PASS_TOKENS = 12
"""Tokens that cost as much as a pass does besides its tokens; measured with the 560M shape: passes
of 16 and 128 tokens took 96 and 479 ms in bfloat16, and 66 and 422 ms with int8 weights."""


class Passes:
    """One session's passes, in numpy; use it inside `with session:`.

    Attributes:
        batch_size: slots of the KV cache.
        sequence_length: tokens that a slot holds.
        vocab_size: of the logits.
        verify_sizes: tokens that a verify pass may have, ascending; none without look-up.
        score_sizes: tokens of the scoring pass; none without one.
        prefixes: what was computed of prompts that began alike; None computes all anew.
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
        self.prefixes: PrefixCache | None = None
        if kept_sizes(config, self.chunks):
            self.prefixes = prefixes_of(session, *prefix_blocks(config))
        self._kept: dict[int, tuple[int, Chunk]] = {}  # of a slot's prompt, up to which token
        self._numbers = {of: number for number, of in enumerate(numbered_passes(config))}

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

        Chunks that are in the prefix cache are copied from there, and the one after them is run.

        A decode pass meanwhile writes to this slot too: its position must be the number of tokens
        done, where the next chunk overwrites it.

        Returns:
            The number of tokens done, and after the last of all the float32 logits
            `(vocab_size,)`; after other chunks None, and no logits are computed or moved.

        Raises:
            ValueError: as `prefill` does.
        """
        self._check_prompt(slot, len(tokens), start)
        at, before = self._reused(slot, tokens, start)
        size = self._chunk(len(tokens) - at)
        first = min(at, self.sequence_length - size)  # back, where it would stick out
        end = min(first + size, len(tokens))
        complete = end == len(tokens)
        last = end - first - 1 if complete else NO_LOGITS
        output = "prefill" if complete else None
        number = self._numbers["prefill", size]
        logits = self._run(tokens[first:end], [first], number, output, slot=slot, last=last)
        if before is not None and not complete:
            self._keep(slot, tokens[at:end], at, before)
        return end - start, logits[0] if complete else None

    def _reused(self, slot: int, tokens: Sequence[int], at: int) -> tuple[int, Chunk | None]:
        """Copy what the prefix cache has of `tokens[at:]`, but for the last chunk.

        Returns:
            Up to which token the slot is filled, and the chunk that ends there, if that is kept.
        """
        known, before = self._kept.pop(slot, (0, None)) if at else (0, None)
        if self.prefixes is None or known != at:
            return at, None
        before = before or self.prefixes.root
        while (size := self._chunk(len(tokens) - at)) < len(tokens) - at:
            found = self.prefixes.find(before, tokens[at : at + size])
            if found is None:
                break
            self._run(found.blocks, [at], self._numbers["reuse", size], None, slot=slot)
            self.prefixes.hit_tokens += size
            at, before = at + size, found
        return at, before

    def _keep(self, slot: int, tokens: Sequence[int], at: int, before: Chunk) -> None:
        """Put a chunk of a slot in the prefix cache, where there is room."""
        number = self._numbers.get(("keep", len(tokens)))
        if self.prefixes is None or number is None:
            return
        known = self.prefixes.find(before, tokens)
        made = known or self.prefixes.add(
            before, tokens, lambda blocks: self._run(blocks, [at], number, None, slot=slot)
        )
        if made is not None:
            self._kept[slot] = at + len(tokens), made

    def decode(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """One token for every slot.

        Args:
            tokens, positions: int32 `(batch_size,)`; an idle slot's position is its length, where
                what it writes to the cache is overwritten before it is read.

        Returns:
            float32 logits, `(batch_size, vocab_size)`.
        """
        return self._run(
            tokens, positions, self._numbers["decode", self.batch_size], "decode", self.batch_size
        )

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
        number, output = self._numbers["verify", sizes[0]], f"verify_{sizes[0]}"
        return self._run(tokens, [position], number, output, len(tokens), slot=slot)

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
        number, output = self._numbers["score", size], f"score_{size}"
        rows = self._run(tokens[first:end], [first], number, output, end - first, slot=slot)
        return rows[start - first :]

    def warm_up(self, times: int = 1) -> None:
        """Run every pass: what is made at first use is there then. Slots keep no tokens.

        Args:
            times: 2 for what a runtime makes of a pass when it is run again, too.
        """
        for _ in range(times):
            for _, run in self.each():
                run()
            for size in kept_sizes(self.config, self.chunks) if self.prefixes else ():
                blocks = range(size // self.chunks[0])
                for kind in ("reuse", "keep"):  # in this order blocks stay as they are
                    self._run(list(blocks), [0], self._numbers[kind, size], None)

    def each(self) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
        """The name of every pass, as of its graph, and what runs it. Slots keep no tokens."""
        yield "decode", partial(self.decode, *np.zeros((2, self.batch_size), np.int32))
        for size in self.chunks:
            yield f"prefill_{size}", partial(self.prefill, 0, [0] * size)
        for size in self.verify_sizes:
            yield f"verify_{size}", partial(self.verify, 0, [0] * size, 0)
        for size in self.score_sizes:
            yield f"score_{size}", partial(self.score_chunk, 0, [0] * size, 0)

    def _chunk(self, tokens: int) -> int:
        """The size of the pass for what is left of a prompt: it depends on nothing else.

        The smallest that holds it all, unless several smaller ones cost less; else the largest.
        """
        larger = next((size for size in self.chunks if size >= tokens), None)
        smaller = next((size for size in reversed(self.chunks) if size <= tokens), None)
        if larger is None or smaller is None:
            return larger or self.chunks[-1]
        rest = tokens % smaller
        several = tokens // smaller * (smaller + PASS_TOKENS)
        if rest:
            several += next(size for size in self.chunks if size >= rest) + PASS_TOKENS
        return smaller if several < larger + PASS_TOKENS else larger

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
