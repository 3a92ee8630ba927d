"""Cases run in this process, one after the other, and what came of each.

    python -m damage.cases FOLDER SEED NUMBER...

prints a line of JSON as each begins, and another as it ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config import ConfigError
from damage.nasty import CANARY, Nasty
from damage.processes import LIMIT
from damage.readers import Readers
from utils.setup import UserError
from utils.writing import for_terminal

MEMORY = 12 << 30
"""Bytes of addresses that a process may have."""

LONGEST_LINE = 2000


class HangError(BaseException):
    """A case has taken too long."""


def work(root: Path, seed: int, numbers: list[int]) -> Iterator[dict[str, Any]]:
    """Run cases in this process; what came of each."""
    logging.basicConfig(level=logging.CRITICAL, force=True)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    readers = Readers(root / "whole")
    told: list[str] = []
    sys.addaudithook(lambda event, arguments: _audit(event, arguments, told))
    signal.signal(signal.SIGALRM, _too_long)
    names = list(readers.targets)
    for number in numbers:
        target = names[number % len(names)]
        yield {"begin": number, "target": target}
        place = root / f"case{number}"
        place.mkdir()
        told.clear()
        begin = time.monotonic()
        case = _outcome(readers, target, place, Nasty(random.Random(f"{seed} {number}")), told)
        if told or any(root.rglob(CANARY)):
            case |= {"outcome": "code or output", "text": "; ".join(told)[:2000]}
        shutil.rmtree(place, ignore_errors=True)
        seconds = round(time.monotonic() - begin, 2)
        yield {"number": number, "target": target, "seconds": seconds} | case


def _outcome(
    readers: Readers, target: str, place: Path, nasty: Nasty, told: list[str]
) -> dict[str, Any]:
    case: dict[str, Any] = {"outcome": "used"}
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        with _watched(told):
            for change in readers.run(target, place, nasty):
                case["change"] = change
    except (UserError, ConfigError) as error:
        case |= _refused(str(error), place, target)
    except HangError:
        case |= {"outcome": "hang", "text": traceback.format_exc()[-1500:]}
    except BaseException:
        case |= {"outcome": "traceback", "text": traceback.format_exc()[-3000:]}
    signal.setitimer(signal.ITIMER_REAL, 0)
    return case


def _refused(message: str, place: Path, target: str) -> dict[str, Any]:
    printed = for_terminal(message)
    table = "is not the model that is configured" in message
    wrong = []
    if "\n" in printed and not table:
        wrong.append("more than a line")
    if len(printed) > LONGEST_LINE:
        wrong.append(f"{len(printed)} characters")
    if place.name not in printed and target != "presets":  # a value is named by its setting
        wrong.append("names no file")
    if wrong:
        return {"outcome": "not a line", "text": f"{', '.join(wrong)}: {printed[:1500]}"}
    return {"outcome": "refused", "text": printed}


WATCHED = (
    "os.system",
    "subprocess.Popen",
    "builtins.input",
    "os.exec",
    "os.posix_spawn",
    "pty.spawn",
)


def _audit(event: str, arguments: tuple, told: list[str]) -> None:
    if event in WATCHED or (event == "exec" and CANARY in repr(arguments)):
        told.append(f"{event} {arguments!r}"[:500])


@contextlib.contextmanager
def _watched(told: list[str]) -> Iterator[None]:
    """Inside, nothing is to be written to stdout, and no panic or traceback to stderr."""
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        os.dup2(output.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            for descriptor in kept:
                os.close(descriptor)
            output.seek(0)
            errors.seek(0)
            if written := output.read(500):
                told.append(f"stdout {written!r}")
            written = errors.read(5000)
            if b"panicked" in written or b"Traceback" in written or b"\x1b" in written:
                told.append(f"stderr {written!r}")


def _too_long(*_: object) -> None:
    raise HangError


if __name__ == "__main__":
    folder, seed, *numbers = sys.argv[1:]
    for came in work(Path(folder), int(seed), [int(number) for number in numbers]):
        print(json.dumps(came), flush=True)
