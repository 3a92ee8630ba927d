"""From token ids to text, one token at a time: whole characters only, and stop strings cut off."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from tokenizers import decoders

from utils.setup import UserError


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
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that this token completes; '' while a character is incomplete."""
        return self._utf8.decode(self._bytes(token))

    def flush(self) -> str:
        """What is left at the end: '' or U+FFFD, which stands for an incomplete character."""
        return self._utf8.decode(b"", final=True)

    def _bytes(self, token: int) -> bytes:
        if token in self._special_ids:
            return b""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # the embedding has rows that are no token, for its size to be round
            return b""
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
    no difference.

    Raises:
        UserError: a stop string is empty.
    """

    def __init__(self, stops: Sequence[str]):
        if "" in stops:
            raise UserError("a stop string must have at least one character, not ''")
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that can be shown now; `found` is set once it ends at a stop string."""
        if self.found is not None:
            return ""
        text = self._held + text
        match = self._first_match(text)
        if match is not None:
            begin, self.found = match
            self._held = ""
            return text[:begin]
        shown = len(text) - self._could_begin(text)
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """The text held back, once nothing follows it."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """Where the stop string that is complete first begins, and which it is."""
        begins = ((text.find(stop), stop) for stop in self._stops)
        ends = ((begin + len(stop), begin, stop) for begin, stop in begins if begin >= 0)
        first = min(ends, default=None)
        return first and first[1:]

    def _could_begin(self, text: str) -> int:
        """How many last characters of `text` could be the beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for count in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-count:]) for stop in self._stops):
                return count
        return 0
