"""The beginnings of prompts in slots: copied from the prefix cache, and put there."""

from __future__ import annotations

from collections.abc import Sequence

from utils.generation.engine_passes import Prompt
from utils.generation.prefixes import Chunk, PrefixCache
from utils.generation.prompt_chunks import Piece, PromptChunks
from utils.generation.runs import Runs


class Beginnings:
    """Knows of each slot's prompt how much of it is in the prefix cache."""

    def __init__(self, runs: Runs, cut: PromptChunks):
        self._runs, self._cut = runs, cut
        # By slot: up to which token, and the chunk that ends there.
        self._kept: dict[int, tuple[int, Chunk]] = {}

    def begin(self, prefixes: PrefixCache | None, prompt: Prompt) -> int:
        """Copy what the cache has of what is left of a prompt, but for the last chunk.

        Returns:
            Up to which token the slot is filled.
        """
        slot, tokens, at = prompt
        if prefixes is None:
            return at
        known, before = self._kept.pop(slot, (-1, prefixes.root)) if at else (0, prefixes.root)
        if known != at:
            return at
        while (size := self._cut.next_size(len(tokens) - at)) < len(tokens) - at:
            found = prefixes.find(before, tokens[at : at + size])
            if found is None:
                break
            self._runs.run("reuse", size, found.blocks, [at], [slot])
            prefixes.hit_tokens += size
            at, before = at + size, found
        self._kept[slot] = at, before
        return at

    def keep(self, prefixes: PrefixCache | None, piece: Piece, tokens: Sequence[int]) -> None:
        """Put a piece of a prompt that was run in the cache, where there is room."""
        if prefixes is None:
            return
        slot, at, size = piece.slot, piece.at, piece.end - piece.at
        known, before = self._kept.pop(slot, (-1, prefixes.root))
        if known != at or piece.complete or not self._runs.knows("keep", size):
            return
        new = tokens[at : piece.end]
        made = prefixes.find(before, new) or prefixes.add(
            before, new, lambda blocks: self._runs.run("keep", size, blocks, [at], [slot])
        )
        if made is not None:
            self._kept[slot] = piece.end, made
