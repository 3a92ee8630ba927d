"""Which of several processes this is, read from the environment that `torchrun` sets."""

from __future__ import annotations

import os


def isPopdistEnvSet() -> bool:  # noqa: N802 - PopDist's own name
    """True where a launcher started this process as one of a numbered set."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def getInstanceIndex() -> int:  # noqa: N802
    """The number of this process, from 0; 0 where no launcher started it.

    Raises:
        ValueError: where RANK is no number in 0 .. WORLD_SIZE - 1.
    """
    if not isPopdistEnvSet():
        return 0
    index, count = _number("RANK"), getNumInstances()
    if not 0 <= index < count:
        raise ValueError(f"RANK is {index}, it must be 0 to {count - 1} (WORLD_SIZE is {count})")
    return index


def getNumInstances() -> int:  # noqa: N802
    """How many processes run the program together; 1 where no launcher started this one.

    Raises:
        ValueError: where WORLD_SIZE is no positive number.
    """
    if not isPopdistEnvSet():
        return 1
    count = _number("WORLD_SIZE")
    if count < 1:
        raise ValueError(f"WORLD_SIZE is {count}, it must be at least 1")
    return count


def getNumLocalReplicas() -> int:  # noqa: N802
    """Replicas that each process runs: POPDIST_NUM_LOCAL_REPLICAS, or 1 where that is not set.

    Raises:
        ValueError: where it is no positive number.
    """
    if "POPDIST_NUM_LOCAL_REPLICAS" not in os.environ:
        return 1
    count = _number("POPDIST_NUM_LOCAL_REPLICAS")
    if count < 1:
        raise ValueError(f"POPDIST_NUM_LOCAL_REPLICAS is {count}, it must be at least 1")
    return count


def getNumTotalReplicas() -> int:  # noqa: N802
    """Replicas of all processes together."""
    return getNumInstances() * getNumLocalReplicas()


def _number(variable: str) -> int:
    text = os.environ[variable]
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{variable} is {text!r}, it must be a whole number") from None


if isPopdistEnvSet():
    # Who loses another process says so itself; torch would add pages of its own stack.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
