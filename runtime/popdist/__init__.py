"""Which of several processes this is, read from the environment that `torchrun` sets.

Its values are checked: all functions raise a `ValueError` where one is no possible number.
"""

from __future__ import annotations

import contextlib
import os


def isPopdistEnvSet() -> bool:  # noqa: N802 - PopDist's own name
    """True where a launcher started this process as one of a numbered set."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def getInstanceIndex() -> int:  # noqa: N802
    """The number of this process, from 0; 0 where no launcher started it."""
    if not isPopdistEnvSet():
        return 0
    index, count = _number("RANK", 0), getNumInstances()
    if index >= count:
        raise ValueError(f"RANK is {index}, it must be 0 to {count - 1} (WORLD_SIZE is {count})")
    return index


def getNumInstances() -> int:  # noqa: N802
    """How many processes run the program together; 1 where no launcher started this one."""
    return _number("WORLD_SIZE", 1) if isPopdistEnvSet() else 1


def getNumLocalReplicas() -> int:  # noqa: N802
    """Replicas that each process runs: POPDIST_NUM_LOCAL_REPLICAS, or 1 where that is not set."""
    name = "POPDIST_NUM_LOCAL_REPLICAS"
    return _number(name, 1) if name in os.environ else 1


def getNumTotalReplicas() -> int:  # noqa: N802
    """Replicas of all processes together."""
    return getNumInstances() * getNumLocalReplicas()


def _number(variable: str, least: int) -> int:
    text = os.environ[variable]
    with contextlib.suppress(ValueError):
        if int(text) >= least:
            return int(text)
    raise ValueError(f"{variable} is {text!r}, it must be a whole number, at least {least}")


if isPopdistEnvSet():
    # Who loses another process says so itself; torch would add pages of its own stack.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
