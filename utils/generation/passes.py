"""The passes that the engine runs on a session, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from config import BloomConfig
from config.costs import prefix_blocks
from modelling.pass_sizes import (
    chunk_sizes,
    decode_name,
    decode_sizes,
    ending_together,
    heads,
    score_sizes,
    share_sizes,
    verify_sizes,
)
from modelling.prefix_blocks import kept_sizes
from modelling.program import InferenceSession
from utils.generation.beginnings import Beginnings
from utils.generation.engine_passes import Prompt
from utils.generation.prefixes import PrefixCache, prefixes_of
from utils.generation.prompt_chunks import Piece, PromptChunks
from utils.generation.runs import Runs
from utils.setup import UserError

PASS_SLOTS = 6
"""Slots that cost as much as a decode pass does besides its slots; measured with the 560M shape in
bfloat16: passes of 1, 4, 8, 16, 24 and 32 slots took 46, 55, 72, 123, 163 and 217 ms."""


class Passes:
    """One session's passes, in numpy; use it inside `with session:`.

    Attributes:
        batch_size: slots of the KV cache.
        sequence_length: tokens that a slot holds.
        vocab_size: of the logits.
        decode_sizes: slots of the decode passes, ascending.
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
        self.decode_sizes = decode_sizes(config)
        self.verify_sizes = verify_sizes(config)
        self.score_sizes = score_sizes(config)
        self.runs = Runs(config, session)
        self.replicas = self.runs.replicas
        self.prefixes: PrefixCache | None = None
        if kept_sizes(config, self.chunks):
            self.prefixes = prefixes_of(session, *prefix_blocks(config))
        self._cut = PromptChunks(config)
        self._beginnings = Beginnings(self.runs, self._cut)

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
        """As `prefill_chunks` does for one prompt."""
        return self.prefill_chunks([Prompt(slot, tokens, start)])[0]

    def prefill_chunks(self, prompts: Sequence[Prompt]) -> list[tuple[int, np.ndarray | None]]:
        """Run chunks of prompts in one pass: of the first one, and of others as there is room.

        Chunks that are in the prefix cache are copied from there, and the one after them is run.

        Returns:
            Of each prompt the number of tokens done, and after its last one the float32 logits
            `(vocab_size,)`; after other chunks None, and no logits are computed or moved.

        Raises:
            ValueError: as `prefill` does.
        """
        for prompt in prompts:
            self._check_prompt(prompt.slot, len(prompt.tokens), prompt.start)
        begin = partial(self._beginnings.begin, self.prefixes)
        pieces, size, done = self._cut.packed(prompts, begin)
        rows = self._run_alone(pieces[0]) if size is None else self._run_shared(pieces, size)
        logits = dict(zip((p.number for p in pieces if p.complete), rows, strict=True))
        for piece in pieces:
            self._beginnings.keep(self.prefixes, piece, prompts[piece.number].tokens)
            done[piece.number] = piece.end
        return [
            (done.get(number, prompt.start) - prompt.start, logits.get(number))
            for number, prompt in enumerate(prompts)
        ]

    def _run_alone(self, piece: Piece) -> np.ndarray:
        """The logits of one piece, `(1, vocab_size)`, or none."""
        output, last = ("prefill", [len(piece.tokens) - 1]) if piece.complete else (None, [])
        given = piece.tokens, [piece.first], [piece.slot]
        return self.runs.run("prefill", piece.size, *given, output=output, last=last)

    def _run_shared(self, pieces: Sequence[Piece], size: int) -> np.ndarray:
        """The logits of those pieces that are their prompt's last, `(pieces, vocab_size)`."""
        block = self._cut.block
        tokens: list[int] = []
        places: list[tuple[int, int]] = []  # of blocks: position and slot
        last = []
        for piece in pieces:
            rows = self._cut.rows(piece)
            if piece.complete:
                last.append(len(tokens) + len(piece.tokens) - 1)
            tokens += [*piece.tokens, *[0] * (rows - len(piece.tokens))]
            places += [(piece.first + i, piece.slot) for i in range(0, rows, block)]
        # What is left of the pass runs the last block again, which changes nothing.
        left = size // block - len(places)
        tokens, places = tokens + left * tokens[-block:], places + left * places[-1:]
        positions, slots = np.array(places, np.int32).T
        count = len(last)
        if count > 1:
            last += [last[-1]] * (heads(self.config) - count)
        output = (None, "prefill", "share")[min(count, 2)]
        given = tokens, positions, slots
        return self.runs.run("share", size, *given, output=output, count=count, last=last)

    def decode(
        self, tokens: np.ndarray, positions: np.ndarray, slots: np.ndarray | None = None
    ) -> np.ndarray:
        """One token for each of some slots, in the narrowest pass that holds them; for the first
        ones alone, where a narrower pass gives more tokens a second.

        Args:
            tokens, positions: int32 `(tokens,)`.
            slots: that they are of, all of them different; the first ones where None.

        Returns:
            float32 logits, `(done, vocab_size)`.
        """
        size = max(self.decode_sizes, key=lambda n: min(n, len(tokens)) / (n + PASS_SLOTS))
        count = min(size, len(tokens))
        slots = np.arange(count) if slots is None else slots
        # What is left of a pass runs the last token again, which changes nothing.
        which = np.minimum(np.arange(size), count - 1)
        given = tokens[which], positions[which], slots[which]
        output = decode_name(self.config, size)
        return self.runs.run("decode", size, *given, output=output, count=count)

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
        given, output = (tokens, [position], [slot]), f"verify_{sizes[0]}"
        return self.runs.run("verify", sizes[0], *given, output=output, count=len(tokens))

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
        given, output = (tokens[first:end], [first], [slot]), f"score_{size}"
        rows = self.runs.run("score", size, *given, output=output, count=end - first)
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
                    self.runs.run(kind, size, blocks, [0], [0])
            for size in share_sizes(self.config):
                self._run_shared([self._cut.smallest], size)  # the logits of one alone, too

    def each(self) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
        """The name of every pass, as of its graph, and what runs it. Slots keep no tokens."""
        for size in self.decode_sizes:
            name = decode_name(self.config, size)
            yield name, partial(self.decode, *np.zeros((2, size), np.int32))
        for size in self.chunks:
            yield f"prefill_{size}", partial(self.prefill, 0, [0] * size)
        for size in share_sizes(self.config):
            several = [self._cut.smallest] * ending_together(self.config, size)
            yield f"share_{size}", partial(self._run_shared, several, size)
        for size in self.verify_sizes:
            yield f"verify_{size}", partial(self.verify, 0, [0] * size, 0)
        for size in self.score_sizes:
            yield f"score_{size}", partial(self.score_chunk, 0, [0] * size, 0)

    def _check_prompt(self, slot: int, length: int, start: int) -> None:
        if not 0 <= slot < self.batch_size:
            raise ValueError(f"slot {slot} is outside the batch of {self.batch_size}")
        if not 0 <= start < length:
            raise ValueError(f"there is no token to run: {length} given, {start} done before")
        if length > self.sequence_length:
            raise ValueError(
                f"{length} tokens are more than the context of {self.sequence_length} holds"
            )
