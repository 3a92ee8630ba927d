"""A log that does not repeat itself: like warnings are shown a few times, then counted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable

from utils.serving.limits import Limits

KINDS = 256
"""Kinds of lines that are told apart; the rest count as one."""


class QuietFilter(logging.Filter):
    """Lets `lines` warnings or errors of a kind pass within `seconds`.

    Lines are alike that come from one logger with one text, before values are filled in, and are
    about errors of one type. The first line that passes after others were held back says how many
    these were.
    """

    def __init__(self, lines: int, seconds: float, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._lines, self._seconds, self._clock = lines, seconds, clock
        self._lock = threading.Lock()
        self._kinds: dict[Hashable, list[float]] = {}  # since when, passed, held back

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        with self._lock:
            return self._passes(record)

    def _passes(self, record: logging.LogRecord) -> bool:
        now, kind = self._clock(), _kind(record)
        if kind not in self._kinds and len(self._kinds) >= KINDS:
            kind = None
        since, passed, held = self._kinds.setdefault(kind, [now, 0, 0])
        if now - since >= self._seconds:
            since, passed = now, 0
        passes = passed < self._lines
        if passes and held:
            record.msg = f"{record.getMessage()} (and {held:.0f} like it before)"
            record.args = None
        passed, held = (passed + 1, 0) if passes else (passed, held + 1)
        self._kinds[kind] = [since, passed, held]
        return passes


def make_quiet(limits: Limits) -> None:
    """Filter what the root logger's handlers write from here on."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(QuietFilter(limits.log_lines, limits.log_seconds))


def _kind(record: logging.LogRecord) -> Hashable:
    error = record.exc_info[0] if record.exc_info else None
    first = str(record.msg).partition("\n")[0][:80]
    return record.name, first, error
