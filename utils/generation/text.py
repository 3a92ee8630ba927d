"""From token ids to text, one token at a time: whole characters only, and stop strings cut off."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from tokenizers import decoders

from utils.setup import UserError


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that are no text: those that `decode(skip_special_tokens=True)` drops.

    Besides those that the settings name, tokens may be marked special in `tokenizer.json` alone.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    added = backend.get_added_tokens_decoder() if backend is not None else {}
    marked = (token for token, what in added.items() if what.special)
    return frozenset((*tokenizer.all_special_ids, *marked))


class TextStream:
    """Turns token ids into increments of text that add up to `tokenizer.decode(all ids)`.

    A token of a byte-level BPE stands for bytes, which may be a part of a character; its text comes
    with the token that completes the character. Special tokens have no text.

    Raises:
        UserError: the tokenizer is not a byte-level BPE, the kind that BLOOM has.
    """

    def __init__(self, tokenizer: Any):
        decoder = tokenizer.backend_tokenizer.decoder
        if not isinstance(decoder, decoders.ByteLevel):
            raise UserError(
                f"the tokenizer must decode as a byte-level BPE, not as {type(decoder).__name__}"
            )
        self._tokenizer = tokenizer
        self._special_ids = special_ids(tokenizer)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that this token completes; '' while a character is incomplete."""
        return self._utf8.decode(self._bytes(token))

    def flush(self) -> str:
        """What is left at the end: '' or U+FFFD, which stands for an incomplete character."""
        return self._utf8.decode(b"", final=True)

    def _bytes(self, token: int) -> bytes:
        return b"" if token in self._special_ids else token_bytes(self._tokenizer, token)


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """What a token of a byte-level BPE stands for; of a special one, its name."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece is None:  # the embedding has rows that are no token, for its size to be round
        return b""
    return piece_bytes(piece)


def piece_bytes(piece: str) -> bytes:
    """What a piece of a byte-level vocabulary stands for."""
    try:
        return bytes(BYTE_OF[character] for character in piece)
    except KeyError:  # an added token, which is kept as plain text
        return piece.encode()


def _byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (as in GPT-2).

    Printable Latin-1 characters are their own code; the other bytes, in order, are U+0100 onwards.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


BYTE_OF = _byte_alphabet()


class StopStrings:
    """Passes text on up to the stop string that is complete first.

    Text that could be the beginning of a stop string is held back until that is known. Of two that
    end together, the one that begins first is cut at. How the text is split into increments makes
    no difference. A character takes the same time whatever the number of stop strings is: they are
    one automaton (Aho and Corasick, doi:10.1145/360825.360855), whose state is the longest
    beginning of a stop string that the text ends with.

    Raises:
        UserError: a stop string is empty.
    """

    def __init__(self, stops: Sequence[str]):
        if "" in stops:
            raise UserError("a stop string must have at least one character, not ''")
        self._next: list[dict[str, int]] = [{}]  # by state and character; state 0 is no beginning
        self._shorter = [0]  # the longest beginning that is an end of this one
        self._length = [0]  # characters of this beginning
        self._complete: list[str | None] = [None]  # the longest stop string that this one ends with
        for stop in stops:
            self._add(stop)
        self._link()
        self._state = 0
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that can be shown now; `found` is set once it ends at a stop string."""
        if self.found is not None:
            return ""
        if len(self._next) == 1:
            return text
        before = len(self._held)
        for place, character in enumerate(text, before + 1):
            self._state = self._after(self._state, character)
            self.found = self._complete[self._state]
            if self.found is not None:
                whole, self._held = self._held + text, ""
                return whole[: place - len(self.found)]
        text = self._held + text
        shown = len(text) - self._length[self._state]
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """The text held back, once nothing follows it."""
        held, self._held, self._state = self._held, "", 0
        return held

    def _after(self, state: int, character: str) -> int:
        """The state that a character leads to."""
        while state and character not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(character, 0)

    def _add(self, stop: str) -> None:
        state = 0
        for length, character in enumerate(stop, 1):
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._shorter.append(0)
                self._length.append(length)
                self._complete.append(None)
            state = self._next[state][character]
        self._complete[state] = stop

    def _link(self) -> None:
        """Find for each state the shorter ones, the shortest states first."""
        level = list(self._next[0].values())
        while level:
            following = []
            for state in level:
                if self._complete[state] is None:
                    self._complete[state] = self._complete[self._shorter[state]]
                for character, longer in self._next[state].items():
                    self._shorter[longer] = self._after(self._shorter[state], character)
                    following.append(longer)
            level = following
