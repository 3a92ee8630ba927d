"""Seconds that the environment sets."""

from __future__ import annotations

import os


def seconds_of(variable: str, default: float) -> float:
    """What an environment variable sets, or a default.

    Raises:
        ValueError: where it is no number from 2 on.
    """
    given = os.environ.get(variable)
    if given is None:
        return default
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 2 <= seconds < float("inf"):
        raise ValueError(f"{variable} must be seconds, 2 or more, not {given!r}")
    return seconds
