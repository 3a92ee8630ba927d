r"""The one way that text from outside is printed or logged: it cannot control a terminal.

Control characters, lone surrogates, and what turns the direction of text are shown as `\x1b` or
`\u202e`. Line feeds and tabs stay, but where one line is to stay one.
"""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Sequence
from typing import Any

KEPT = "\n\t"
CONTROLS = (
    *(range(0x20), range(0x7F, 0xA0)),
    *(range(0x2028, 0x202F), range(0x2066, 0x206A)),  # ends of lines, turns of direction
    *(range(0xD800, 0xE000), [0xFEFF]),
)
ESCAPES = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for codes in CONTROLS
    for code in codes
    if chr(code) not in KEPT
}
IN_ONE_LINE = ESCAPES | {ord("\n"): "\\n", ord("\t"): "\\t"}

CELL = 60
"""Characters that a value may take in a message or a table."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = CELL
_short.maxlevel = 3


def escaped(text: str) -> str:
    """Text of any number of lines."""
    return text.translate(ESCAPES)


def in_one_line(text: str) -> str:
    """Text as a part of a line."""
    return text.translate(IN_ONE_LINE)


def shown(value: Any) -> str:
    """A value as Python writes it, shortened: nobody reads a megabyte of it."""
    return in_one_line(_short.repr(value))


def cell(value: Any) -> str:
    """A value as a table shows it: a text as it is, shortened."""
    text = in_one_line(value) if isinstance(value, str) else shown(value)
    return text if len(text) <= CELL else text[: CELL - 1] + "…"


def table(rows: Sequence[Sequence[str]], right: bool = False, between: str = "  ") -> list[str]:
    """A line for each row, with its cells as wide as the widest of their columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    fill = str.rjust if right else str.ljust
    return [between.join(map(fill, row, widths)).rstrip() for row in rows]


class EscapingFormatter(logging.Formatter):
    """Formats records so that each message is one line, and nothing in it controls a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = in_one_line(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))  # the traceback, too
