"""The settings of the terminal, for a process that may end while a line is being edited."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

try:
    import termios
except ImportError:  # not a POSIX system
    termios = None  # type: ignore[assignment]


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
