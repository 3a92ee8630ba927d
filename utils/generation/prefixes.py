"""The prefix cache: what was computed of prompts, for requests that begin alike.

A tree of chunks: a chunk follows those before it in a prompt, and its keys and values are in blocks
of the session. What a token's keys and values are to the bit depends on the passes that computed
them and those before it. So a chunk is only ever used where the same prompt without a cache would
have run a pass of the same size at the same place, after the same chunks: text and logits are the
same with the cache and without.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary


class Chunk:
    """Tokens of a prompt that follow those of `parent`; None for the root, which has none.

    Attributes:
        blocks: the numbers of the blocks that hold its keys and values; none once it was dropped.
    """

    __slots__ = ("parent", "tokens", "blocks", "following")

    def __init__(self, parent: Chunk | None, tokens: tuple[int, ...], blocks: list[int]):
        self.parent, self.tokens, self.blocks = parent, tokens, blocks
        self.following: dict[tuple[int, ...], Chunk] = {}


class PrefixCache:
    """Which chunks are kept, and where; those that were not used for longest are dropped first.

    Args:
        blocks: the number of blocks there are.
        block: the tokens of one.

    Attributes:
        tokens: that are kept.
        capacity: tokens that can be.
        hit_tokens: of prompts so far that were taken from here.
    """

    def __init__(self, blocks: int, block: int):
        self.block, self.capacity = block, blocks * block
        self.hit_tokens = 0
        self.root = Chunk(None, (), [])
        self._free = list(range(blocks))
        self._used: OrderedDict[Chunk, None] = OrderedDict()  # parents after their children

    @property
    def tokens(self) -> int:
        return self.capacity - self.block * len(self._free)

    def find(self, before: Chunk, tokens: Sequence[int]) -> Chunk | None:
        """The chunk of these tokens that follows `before`."""
        found = before.following.get(tuple(tokens))
        if found is not None:
            self._touch(found)
        return found

    def add(
        self, before: Chunk, tokens: Sequence[int], keep: Callable[[list[int]], object]
    ) -> Chunk | None:
        """Have `keep` copy a chunk to the blocks that it is given.

        Returns:
            None where there is no room, or `before` was dropped meanwhile.
        """
        count = len(tokens) // self.block
        if before is not self.root and not before.blocks:
            return None
        self._touch(before)
        if not self._make_room(count, before):
            return None
        keep(self._free[-count:])  # may be interrupted: they are free until it is done
        blocks = [self._free.pop() for _ in range(count)][::-1]
        made = before.following[tuple(tokens)] = Chunk(before, tuple(tokens), blocks)
        self._touch(made)
        return made

    def _touch(self, chunk: Chunk) -> None:
        """It was used just now, and so were those before it."""
        at: Chunk | None = chunk
        while at is not None and at is not self.root:
            self._used[at] = None
            self._used.move_to_end(at)
            at = at.parent

    def _make_room(self, count: int, keep: Chunk) -> bool:
        """Drop what was not used for longest, but for `keep`; whether so many blocks are free."""
        while len(self._free) < count:
            oldest = next(iter(self._used), keep)
            if oldest is keep:  # all others are before it
                return False
            self._drop(oldest)
        return True

    def _drop(self, chunk: Chunk) -> None:
        """One that none follows: who follows was used before who is followed."""
        assert chunk.parent is not None and not chunk.following
        del self._used[chunk]
        del chunk.parent.following[chunk.tokens]
        self._free += chunk.blocks
        chunk.blocks = []


_of_sessions: WeakKeyDictionary[object, PrefixCache] = WeakKeyDictionary()


def prefixes_of(session: object, blocks: int, block: int) -> PrefixCache:
    """The one of a session, whose blocks nobody else may number."""
    return _of_sessions.setdefault(session, PrefixCache(blocks, block))
