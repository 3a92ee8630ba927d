"""The terminal of a process that may end at any moment: what it says, and its settings."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

try:
    import termios
except ImportError:  # not a POSIX system
    termios = None  # type: ignore[assignment]


def say(line: str) -> None:
    """One line on standard error; it is lost where that is closed or full."""
    if sys.stderr is not None:  # for None, `print` takes standard output
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)


class TerminalSettings:
    """Those that standard input has now, if it is a terminal."""

    def __init__(self) -> None:
        self._settings: list[Any] | None = None
        if termios is not None and sys.stdin is not None:
            with contextlib.suppress(OSError, ValueError, termios.error):
                self._settings = termios.tcgetattr(sys.stdin.fileno())

    def restore(self) -> None:
        """Set them again."""
        if self._settings is not None:
            with contextlib.suppress(OSError, ValueError, termios.error):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, self._settings)
