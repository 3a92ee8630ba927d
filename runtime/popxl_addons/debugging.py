"""Printing that the environment turns on and off."""

from __future__ import annotations

import os
from typing import Any

import popxl
from popxl import ops

LEVELS = {"TRACE": 0, "DEBUG": 1, "INFO": 2, "WARN": 3}
VARIABLE = "MODEL_LOG_LEVEL"
"""Environment variable: the lowest level that is printed, INFO where it is not set."""


def print_tensor(t: popxl.Tensor, *args: Any, level: str = "DEBUG", **kwargs: Any) -> popxl.Tensor:
    """`ops.print_tensor` where `MODEL_LOG_LEVEL` is this level or a lower one; returns `t`.

    Args:
        level: "TRACE", "DEBUG", "INFO" or "WARN".

    Raises:
        ValueError: for another level, here or in the environment.
    """
    return ops.print_tensor(t, *args, **kwargs) if _is_printed(level) else t


def print_text(text: str, num: popxl.Tensor | None = None, level: str = "DEBUG") -> None:
    """Print `text`, and `num` behind it, when the program reaches this place.

    Args:
        level: as for `print_tensor`.
    """
    if _is_printed(level):
        ops.print_tensor(popxl.constant(()) if num is None else num, text)


def _is_printed(level: str) -> bool:
    return _number("level", level) >= _number(VARIABLE, os.environ.get(VARIABLE, "INFO"))


def _number(what: str, level: str) -> int:
    if level not in LEVELS:
        raise ValueError(f"{what} {level!r}: allowed are {', '.join(LEVELS)}")
    return LEVELS[level]
