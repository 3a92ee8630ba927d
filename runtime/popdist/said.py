"""One line says why a job ended, whichever of its processes comes to know it."""

from __future__ import annotations

import contextlib
import os
import sys

SAID = "POPDIST_SAID"
"""Environment variable: the file that a launcher's process creates before it says why all end."""


def say(line: str) -> None:
    """Write one line to standard error; it is lost where that is closed or full."""
    if sys.stderr is not None:  # for None, `print` takes standard output
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)


def say_once(reason: str) -> None:
    """Say why the job ended, unless another process of the same launcher has created its mark."""
    with contextlib.suppress(KeyError, PermissionError):  # rather two lines than none
        try:
            open(os.environ[SAID], "x").close()
        except FileExistsError:
            return
    say(f"error: {reason}")
