"""Texts that follow a JSON schema, a regular expression or a list of choices, by llguidance.

At each place only tokens are allowed with which the text can still become such a text. The library
makes the mask of a place when it is asked for, within bounds, and needs none of a whole vocabulary
beforehand; tokens are its bytes, which is what those of a byte-level BPE are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from utils.escaping import in_one_line
from utils.generation.request import ends_of
from utils.generation.text import special_ids, token_bytes
from utils.setup import UserError

Kind = Literal["json_schema", "regex", "choice"]
Grammar = Callable[[], "GrammarConstraint"]
"""What texts must be like: makes the constraint of one text."""

LEXER_STATES = 50_000
"""Of one grammar, a kilobyte or two each."""

REASON = 300
"""Characters of the library's reasons that are told."""


class Grammars:
    """Makes grammars for a model's vocabulary, in one thread; its tokens are read at the first.

    Args:
        vocab_size: of the logits.
    """

    def __init__(self, tokenizer: Any, vocab_size: int):
        self._tokenizer, self._vocab_size = tokenizer, vocab_size

    def compile(self, kind: Kind, content: Any) -> Grammar:
        """A grammar from a schema, an expression, or a list of texts; takes seconds at first.

        Raises:
            UserError: it is none, or too large.
        """
        from llguidance import LLMatcher, LLParserLimits  # late: few requests need it

        limits = LLParserLimits(max_lexer_states=LEXER_STATES, verbose_errors=False)
        try:
            grammar = _grammar(kind, content)
            matcher = LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        except ValueError as error:
            raise _refused(kind, str(error)) from None
        if matcher.is_error():
            raise _refused(kind, matcher.get_error())
        ends = ends_of(self._tokenizer)
        return lambda: GrammarConstraint(matcher.deep_copy(), self._vocab_size, ends)

    @cached_property
    def _vocabulary(self) -> Any:
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocab_size)))


class GrammarConstraint:
    """Which tokens of one text may come next; see `utils.generation.extras.Constraint`."""

    def __init__(self, matcher: Any, vocab_size: int, ends: frozenset[int]):
        self._matcher, self._vocab_size = matcher, vocab_size
        self._ends = [token for token in ends if token < vocab_size]

    def mask(self) -> np.ndarray:
        """Of each token whether it may come next, bool `[vocab_size]`.

        Raises:
            UserError: nothing may, or finding out takes too much.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise UserError(f"the text cannot be constrained: {_short(self._matcher.get_error())}")
        allowed = np.zeros(self._vocab_size, bool)
        found = np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(bool)
        allowed[: len(found)] = found
        allowed[self._ends] = self._matcher.is_accepting()
        if not allowed.any():
            raise UserError("the text cannot be constrained: no token may come next")
        return allowed

    def advance(self, token: int) -> None:
        """The token was chosen; one that ends the text changes nothing."""
        if token not in self._ends:
            self._matcher.consume_token(token)

    @property
    def complete(self) -> bool:
        """Whether the text is whole and nothing may follow it."""
        return self._matcher.is_stopped() and not self._matcher.is_error()


class _Vocabulary:
    """The tokens as llguidance takes them from another library than it knows."""

    def __init__(self, tokenizer: Any, vocab_size: int):
        special = special_ids(tokenizer)
        self.eos_token_id = min(ends_of(tokenizer))
        self.bos_token_id = None
        self.tokens = [
            b"" if token in special else token_bytes(tokenizer, token)
            for token in range(vocab_size)
        ]
        self.special_token_ids = sorted(special)
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> Sequence[int]:
        return self._tokenizer(text).input_ids


def _grammar(kind: Kind, content: Any) -> str:
    from llguidance import LLMatcher

    if kind == "regex":
        return LLMatcher.grammar_from_regex(content)
    if kind == "choice":
        return LLMatcher.grammar_from_regex("|".join(f"(?:{_quoted(text)})" for text in content))
    return LLMatcher.grammar_from_json_schema(
        json.dumps(content), overrides={"whitespace_pattern": " ?"}
    )


def _quoted(text: str) -> str:
    """The text as a regular expression: every character that is no letter or digit by its code."""
    return re.sub(r"[^A-Za-z0-9]", lambda found: rf"\x{{{ord(found[0]):x}}}", text)


def _refused(kind: Kind, reason: str) -> UserError:
    return UserError(f"{kind.replace('_', ' ')} cannot be followed: {_short(reason)}")


def _short(reason: str) -> str:
    return in_one_line(reason.strip())[:REASON]
