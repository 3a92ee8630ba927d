"""How tokens are called in an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from utils.generation.text import TextStream, token_bytes


class TokenNames:
    """The names of a tokenizer's tokens."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def stream(self) -> TextStream:
        """What puts them together to a text."""
        return TextStream(self._tokenizer)

    def bytes_of(self, token: int) -> bytes:
        """What it adds to a text; of a special token, its name."""
        return token_bytes(self._tokenizer, token)

    def name(self, token: int) -> str:
        r"""Its text; `bytes:\xe2\x80` for what is no whole character, as OpenAI writes it."""
        data = self.bytes_of(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def unique(self, tokens: Sequence[int]) -> list[str]:
        """Names of several tokens, told apart by their ids where they would be the same."""
        names = [self.name(token) for token in tokens]
        return [
            name if names.count(name) == 1 else f"{name}<{token}>"
            for name, token in zip(names, tokens, strict=True)
        ]
