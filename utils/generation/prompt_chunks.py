"""Chunks of prompts: how large the next one is, and which of several prompts share a pass.

Where a prompt is cut depends on nothing but its length, and chunks share a pass only with those
that a CPU's kernels compute as they do: its text is the same to the bit, alone and among others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from popxl_shared.limits import SOME_ROWS

from config import BloomConfig
from modelling.pass_sizes import chunk_sizes, heads, share_sizes
from utils.generation.engine_passes import Prompt

PASS_TOKENS = 12
"""Tokens that cost as much as a pass does besides its tokens; measured with the 560M shape: passes
of 16 and 128 tokens took 96 and 479 ms in bfloat16, and 66 and 422 ms with int8 weights."""


@dataclass(frozen=True)
class Piece:
    """A chunk of a prompt that is run.

    Attributes:
        number: of its prompt among those given.
        at: tokens of the prompt that are done before.
        first: the position of the first token that is run: `at`, or before it at the context's end.
        end: tokens of the prompt that are done after it.
        size: of the pass that would run it alone.
        complete: whether it is the prompt's last.
    """

    number: int
    slot: int
    at: int
    first: int
    end: int
    size: int
    tokens: Sequence[int]
    complete: bool


class PromptChunks:
    """Cuts and packs prompts for a program's passes."""

    def __init__(self, config: BloomConfig):
        self._length = config.model.sequence_length
        self._sizes, self._shared = chunk_sizes(config), share_sizes(config)
        self._heads = heads(config)
        self.block = self._sizes[0]

    def packed(
        self, prompts: Sequence[Prompt], begin: Callable[[Prompt], int]
    ) -> tuple[list[Piece], int | None, dict[int, int]]:
        """The pieces that are run next, the first prompt's in any case.

        Args:
            begin: how many tokens of a prompt are done; asked where it may be run.

        Returns:
            The pieces; the size of the pass that they share, or None for one of the first one's own
            size; and what `begin` said, by the number of the prompt.
        """
        begun = {0: begin(prompts[0])}
        alone = self._piece(0, prompts[0], begun[0])
        best, chosen, size = self._worth([alone], alone.size), [alone], None
        few = alone.size <= SOME_ROWS
        for shared in reversed([s for s in self._shared if (s <= SOME_ROWS) == few]):
            pieces = self._filling(shared, prompts, begin, begun)
            if pieces and self._worth(pieces, shared) > best:
                best, chosen, size = self._worth(pieces, shared), pieces, shared
        return chosen, size, begun

    def next_size(self, tokens: int) -> int:
        """The size of the chunk for what is left of a prompt: it depends on nothing else.

        The smallest that holds it all, unless several smaller ones cost less; else the largest.
        """
        larger = next((size for size in self._sizes if size >= tokens), None)
        smaller = next((size for size in reversed(self._sizes) if size <= tokens), None)
        if larger is None or smaller is None:
            return larger or self._sizes[-1]
        rest = tokens % smaller
        several = tokens // smaller * (smaller + PASS_TOKENS)
        if rest:
            several += next(size for size in self._sizes if size >= rest) + PASS_TOKENS
        return smaller if several < larger + PASS_TOKENS else larger

    @property
    def smallest(self) -> Piece:
        """A prompt of one block, in the first slot."""
        return self._piece(0, Prompt(0, [0] * self.block, 0), 0)

    def _filling(
        self,
        size: int,
        prompts: Sequence[Prompt],
        begin: Callable[[Prompt], int],
        begun: dict[int, int],
    ) -> list[Piece]:
        """Pieces of prompts in turn that fit a shared pass; none where the first one does not."""
        pieces: list[Piece] = []
        done, room, ending = dict(begun), size, 0
        turns = deque(range(len(prompts)))
        while turns and room >= self.block and ending < self._heads:
            number = turns.popleft()
            if number not in begun:
                done[number] = begun[number] = begin(prompts[number])
            piece = self._piece(number, prompts[number], done[number])
            if self._fits(piece, room, few=size <= SOME_ROWS):
                pieces.append(piece)
                room -= self.rows(piece)
                done[number] = piece.end
                ending += piece.complete
                if not piece.complete:
                    turns.append(number)
            elif not number and not pieces:
                return []
        return pieces

    def _fits(self, piece: Piece, room: int, few: bool) -> bool:
        alike = (piece.size <= SOME_ROWS) == few
        return alike and piece.size % self.block == 0 and self.rows(piece) <= room

    def rows(self, piece: Piece) -> int:
        """Of a shared pass: whole blocks."""
        return -(-len(piece.tokens) // self.block) * self.block

    def _worth(self, pieces: Sequence[Piece], size: int) -> float:
        """Tokens that are done for what a pass costs."""
        return sum(piece.end - piece.at for piece in pieces) / (size + PASS_TOKENS)

    def _piece(self, number: int, prompt: Prompt, at: int) -> Piece:
        slot, tokens, _ = prompt
        size = self.next_size(len(tokens) - at)
        first = min(at, self._length - size)  # back, where it would stick out
        end = min(first + size, len(tokens))
        return Piece(number, slot, at, first, end, size, tokens[first:end], end == len(tokens))
