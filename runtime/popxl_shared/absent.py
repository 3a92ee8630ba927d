"""Names that PopXL has and this runtime does not do: they are there to be imported, and say so.

A program that only runs inference imports them beside what it needs. Calling one raises a
`NotImplementedError` of one line; importing it, or naming it in an annotation, does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

GRADIENTS = "gradients are not there, this runtime runs programs forward only"
OPTIMISERS = "optimisers are not there, this runtime runs programs forward only"
FLOAT8 = "8-bit floats are not supported here; use float16, bfloat16 or float32"


def absent(name: str, why: str) -> Callable[..., NoReturn]:
    """A function that only raises."""

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"{name}: {why}")

    refuse.__name__ = refuse.__qualname__ = name.rpartition(".")[2]
    refuse.__doc__ = f"Not there: {why}."
    return refuse


def absent_class(name: str, why: str) -> type:
    """A class that cannot be made."""
    members = {"__init__": absent(name, why), "__doc__": f"Not there: {why}."}
    return type(name.rpartition(".")[2], (), members)
