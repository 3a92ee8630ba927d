"""Proposals by prompt look-up: the text is expected to go on as it did where it last stood so.

This is speculative decoding with the text so far in place of a smaller model (arXiv 2211.17192;
https://github.com/apoorvumang/prompt-lookup-decoding). A pass checks all that is proposed at once:
the request chooses its token at each place, as it would without, and goes on to the next place for
as long as that is the token proposed there. So the tokens are those that plain decoding chooses,
sampled ones too: the same random numbers are drawn for the same places.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2
"""Lengths of the n-grams looked for, in tokens: one that is longer is the better proof."""

MOST_PATIENCE = 5
"""Up to 2^5 - 1 tokens are decoded plainly between two passes that accept nothing."""


class PromptLookup:
    """Proposes the next tokens of one request.

    How many is learned from how it went: more after a pass that accepted all it could, fewer after
    one that did not, and none for a while after passes that accepted nothing, twice as long each
    time. So text that does not repeat itself takes hardly longer than without.

    Args:
        sizes: of the verify passes in tokens, ascending; the proposals and the token before them
            fill one. None is no proposals.

    Attributes:
        passes, proposed, accepted: how many verify passes were made, tokens proposed to them and
            tokens that the request chose likewise.
    """

    def __init__(self, sizes: Sequence[int]):
        self.passes = self.proposed = self.accepted = 0
        self._sizes = tuple(sizes)
        self._level = 0  # of the sizes: the largest to be used
        self._misses = 0
        self._wait = 0  # tokens
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram: where it ended last, and went on
        self._indexed = 0  # ids that the n-grams were followed by
        self._last = 0  # tokens that were proposed last,
        self._confirmed = 0  # and that the request chose likewise
        self._open: list[int] = []  # what of them may still be confirmed

    def propose(self, ids: Sequence[int], room: int) -> list[int]:
        """The tokens that may follow `ids`; none where there is nothing to go by.

        Args:
            ids: the text so far: that of the last call, and more.
            room: tokens that the context has left for a pass, which begins with the last of `ids`.
        """
        if not self._sizes:
            return []
        self._learn()
        self._index(ids)
        if self._wait:
            self._wait -= 1
            return []
        proposal = self._continuation(ids, self._count(room))
        if proposal:
            self.passes += 1
            self.proposed += len(proposal)
            self._last, self._open = len(proposal), list(proposal)
        return proposal

    def confirm(self, token: int) -> bool:
        """Whether the token chosen is the next of those proposed: the one after it counts too."""
        if not self._open or token != self._open.pop(0):
            self._open = []  # what is left was proposed to follow another token
            return False
        self._confirmed += 1
        self.accepted += 1
        return True

    def _count(self, room: int) -> int:
        """How many tokens to propose: what fills the widest pass in use that there is room for."""
        fitting = [size for size in self._sizes[: self._level + 1] if size <= room]
        return fitting[-1] - 1 if fitting else 0

    def _learn(self) -> None:
        """From how the last proposal went."""
        proposed, confirmed = self._last, self._confirmed
        self._open, self._last, self._confirmed = [], 0, 0
        if not proposed:
            return
        if confirmed == proposed:
            self._level = min(self._level + 1, len(self._sizes) - 1)
        elif self._level and confirmed < self._sizes[self._level - 1]:
            self._level -= 1
        if confirmed:
            self._misses = max(self._misses - confirmed, 0)
        else:
            self._misses = min(self._misses + 1, MOST_PATIENCE)
            self._wait = 2**self._misses - 1

    def _index(self, ids: Sequence[int]) -> None:
        """Note where n-grams ended that were followed by another token since the last call."""
        for end in range(max(self._indexed, SHORTEST), len(ids)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._ends[tuple(ids[end - length : end])] = end
        self._indexed = len(ids)

    def _continuation(self, ids: Sequence[int], count: int) -> list[int]:
        """What followed the last ids when they last were there, the longest n-gram first.

        Where that comes up to the end it goes on with itself, as text does that repeats itself.
        """
        for length in range(min(LONGEST, len(ids)), SHORTEST - 1, -1):
            end = self._ends.get(tuple(ids[-length:]))
            if end is not None:
                period = list(ids[end : end + count])
                return (period * count)[:count]
        return []
