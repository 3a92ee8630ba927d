"""Standard streams that may be closed or full: what a script does about it, in one place.

What is said on stderr may be lost, and stops nothing. Results that cannot be written to stdout end
the script with one line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

STREAMS = ("stdin", "stdout", "stderr")
"""By their descriptors."""

CLOSED = (
    "standard output is closed, so there is nowhere to write to: leave out `>&-`, or give a file"
)


class OutputError(Exception):
    """Results cannot be written to stdout: one line that says why."""


def prepare() -> None:
    """What a script does first.

    A file that is opened later must not get the descriptor of a closed stream: libraries write
    their warnings there. Nor is there a stderr that is None: `print` would take stdout for it.
    """
    closed = [number for number in range(len(STREAMS)) if not _is_open(number)]
    for number in closed:
        # For reading, whichever it is: what is written to it by mistake is refused.
        opened = os.open(os.devnull, os.O_RDONLY if number < 2 else os.O_WRONLY)
        if opened != number:  # another one is closed, too, or somebody was faster
            os.dup2(opened, number)
            os.close(opened)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - open to the end
    elif not isinstance(sys.stderr, Lossy):
        sys.stderr = Lossy(sys.stderr)  # type: ignore[assignment]


def require_stdout() -> None:
    """What a script with results does next.

    Raises:
        OutputError: stdout is closed.
    """
    if sys.stdout is None:
        raise OutputError(CLOSED)
    if not isinstance(sys.stdout, Results):
        sys.stdout = Results(sys.stdout)  # type: ignore[assignment]


def guarded(main: Callable[[], int]) -> int:
    """The exit status of a `main` that writes results and needs nothing else round it."""
    prepare()
    try:
        require_stdout()
        status = main()
        sys.stdout.flush()
    except OutputError as error:
        give_up_stdout()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        give_up_stdout()
        return 141
    return status


def give_up_stdout() -> None:
    """Let what is still buffered for stdout be lost: it would fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class _Stream:
    """A text stream with another `write` and `flush`."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Lossy(_Stream):
    """A stream for what is said: where it is full or its reader has gone, that is lost."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


class Results(_Stream):
    """A stream for results: where they cannot be written, it says so in an error of its own.

    A reader that has gone, as in `... | head`, is still a `BrokenPipeError`.
    """

    def write(self, text: str) -> int:
        with _told():
            return self._stream.write(text)

    def flush(self) -> None:
        with _told():
            self._stream.flush()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output cannot be written: {error.strerror or error}") from None


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
