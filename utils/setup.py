"""What every script does round its work: one-line errors, logging to stderr."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from config import ConfigError
from utils import distributed, streams
from utils.escaping import EscapingFormatter, escaped, in_one_line

# Libraries that write a line for each request or file lock.
CHATTY = ("httpx", "httpcore", "urllib3", "filelock", "asyncio", "matplotlib")


class UserError(ValueError):
    """Something the user can put right: the message says what was given and what to do."""


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main` and leave the process with its exit status.

    The status is what `main` returns (None is 0). A `UserError`, a `ConfigError`, too little
    memory or a stdout that is closed or full is printed as ``error: ...`` on stderr, status 2; an
    interrupt is status 130, as shells have it. Any other exception is a fault of the program and
    keeps its traceback. Of several processes the others end with this one.
    """
    status, message = 1, ""
    escape_errors()
    try:
        streams.prepare()
        distributed.prepare()
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupted)
        if distributed.leads():  # the others write no results
            streams.require_stdout()
        status = _status_of(main)
        sys.stdout.flush()
    except streams.OutputError as error:
        streams.give_up_stdout()
        status, message = 2, str(error)
    except (UserError, ConfigError, MemoryError) as error:
        status, message = 2, str(error) or "out of memory"
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        streams.give_up_stdout()  # the reader of our output has gone, as in `... | head`
        status = 141
    except Exception as fault:
        if not distributed.several():
            raise
        sys.excepthook(type(fault), fault, fault.__traceback__)
        status, message = 1, f"ended by {type(fault).__name__}: {fault}"
    # An interrupt from now on has nothing left to interrupt; of several processes it would keep
    # this one from ending the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN if distributed.several() else signal.SIG_DFL)
    distributed.finish(status, message)
    sys.exit(status)


def escape_errors() -> None:
    """Have tracebacks and warnings, which may quote files, control no terminal."""

    def say(text: str) -> None:
        if sys.stderr is not None:
            print(escaped(text), end="", file=sys.stderr, flush=True)

    def fault(*error: Any) -> None:
        say("".join(traceback.format_exception(*error)))

    def fault_of_thread(found: threading.ExceptHookArgs) -> None:
        if found.exc_type is not SystemExit:
            fault(found.exc_type, found.exc_value, found.exc_traceback)

    def warned(message: Warning | str, category: Any, filename: str, line: int, *_: Any) -> None:
        say(warnings.formatwarning(in_one_line(str(message)), category, filename, line))

    sys.excepthook, threading.excepthook = fault, fault_of_thread
    warnings.showwarning = warned  # type: ignore[assignment]


def _interrupted(*_: Any) -> None:
    """Answer SIGINT by an exception, but while torch is imported, which one would abort."""
    torch = sys.modules.get("torch")
    if torch and torch.__spec__ and getattr(torch.__spec__, "_initializing", False):
        os._exit(128 + signal.SIGINT)
    raise KeyboardInterrupt


def _status_of(main: Callable[[], int | None]) -> int:
    """What `main` returns, or leaves with."""
    try:
        return main() or 0
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0


def setup_logging(level: str = "info") -> None:
    """Log to stderr from `level` up, one of the setting's values; stdout is for results alone.

    Of several processes the first one tells all, and the first of another machine its warnings.
    """
    severity = max(logging.getLevelNamesMapping()[level.upper()], distributed.least_severity())
    logging.basicConfig(level=severity, stream=sys.stderr, force=True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(EscapingFormatter("%(levelname)s: %(message)s"))
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(severity, logging.WARNING))
