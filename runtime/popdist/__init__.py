"""Which of several processes this is, read from the environment that `torchrun` sets.

Its values are checked: all functions raise a `ValueError` where one is no possible number.
"""

from __future__ import annotations

import contextlib
import os
import sys

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # what torch logs, it raises, too

SAID = "POPDIST_SAID"
"""Environment variable: the file that a launcher's process creates before it says why all end."""


def isPopdistEnvSet() -> bool:  # noqa: N802 - PopDist's own name
    """True where a launcher started this process as one of a numbered set."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def getInstanceIndex() -> int:  # noqa: N802
    """The number of this process, from 0; 0 where no launcher started it."""
    if not isPopdistEnvSet():
        return 0
    index, count = number("RANK", 0), getNumInstances()
    if index >= count:
        raise ValueError(f"RANK is {index}, it must be 0 to {count - 1} (WORLD_SIZE is {count})")
    return index


def getNumInstances() -> int:  # noqa: N802
    """How many processes run the program together; 1 where no launcher started this one."""
    return number("WORLD_SIZE", 1) if isPopdistEnvSet() else 1


def getNumLocalReplicas() -> int:  # noqa: N802
    """Replicas that each process runs: POPDIST_NUM_LOCAL_REPLICAS, or 1 where that is not set."""
    return number("POPDIST_NUM_LOCAL_REPLICAS", 1, default=1)


def getNumTotalReplicas() -> int:  # noqa: N802
    """Replicas of all processes together."""
    return getNumInstances() * getNumLocalReplicas()


def number(variable: str, least: int, default: int = 0) -> int:
    """The whole number that an environment variable sets, or a default."""
    text = os.environ.get(variable, f"{default}")
    with contextlib.suppress(ValueError):
        if int(text) >= least:
            return int(text)
    raise ValueError(f"{variable} is {text!r}, it must be a whole number, at least {least}")


def say_once(reason: str) -> None:
    """Print the line that says why a job ended, unless a process of the same launcher has."""
    with contextlib.suppress(KeyError, PermissionError):  # rather two lines than none
        try:
            open(os.environ[SAID], "x").close()
        except FileExistsError:
            return
    if sys.stderr is not None:  # for None, `print` takes standard output
        with contextlib.suppress(OSError, ValueError):
            print(f"error: {reason}", file=sys.stderr, flush=True)
