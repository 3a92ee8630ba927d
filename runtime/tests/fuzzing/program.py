"""Random programs as data: what is drawn, shrunk, printed as PopXL code and interpreted by numpy.

Every tensor has a name of its own in the whole program. Sizes are expressions of the program's
dimensions (`"T"`, `"H // G"`), so that a program can be made smaller without rewriting its steps.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Size = int | str
Shape = tuple[Size, ...]

DERIVED = {"H": "h * d", "L": "T + S"}
"""Dimensions that follow from others: hidden size and length of a KV cache."""


@dataclass(frozen=True)
class Type:
    """Shape and dtype (its PopXL name) of a tensor."""

    shape: Shape
    dtype: str


@dataclass
class Step:
    """`results = kind(*operands, **settings)`; a setting that is a str is an expression."""

    kind: str
    results: list[str]
    operands: list[str]
    settings: dict[str, Any] = field(default_factory=dict)

    def bodies(self) -> list[Body]:
        """The graphs that it calls."""
        return [value for value in self.settings.values() if isinstance(value, Body)]


@dataclass
class Body:
    """A graph, made from a function called `name`; the main one has no inputs.

    Attributes:
        declared: how the program declares it as a composite, as code; empty where it does not.
    """

    name: str
    inputs: list[str] = field(default_factory=list)
    by_ref: set[str] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    declared: str = ""

    def all(self) -> Iterator[Body]:
        """Those that it calls, each before its caller, and itself at the end."""
        for step in self.steps:
            for body in step.bodies():
                yield from body.all()
        yield self


@dataclass
class Source:
    """A tensor that the main graph starts with.

    Attributes:
        place: "variable", or "stream".
        draw: how its numbers are drawn, see `data.draw`.
        group: stride and size of the groups of replicas that hold the same.
        swapped: whether its bytes lie with the last two axes swapped.
    """

    name: str
    place: str
    draw: str
    group: tuple[int, int] = (1, 1)
    swapped: bool = False


@dataclass
class Buffer:
    """A remote buffer whose slots are filled with drawn numbers."""

    name: str
    type: Type
    entries: int
    draw: str
    group: tuple[int, int] = (1, 1)


@dataclass
class Program:
    """A main graph with all that it needs; `body.outputs` are stored to the host."""

    seed: int
    replicas: int
    dims: dict[str, int]
    body: Body
    sources: list[Source] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    types: dict[str, Type] = field(default_factory=dict)

    def copy(self) -> Program:
        return copy.deepcopy(self)

    def sizes(self) -> dict[str, int]:
        """All dimensions by name."""
        known = dict(self.dims)
        for name, text in DERIVED.items():
            known[name] = eval(text, {}, known)
        return known

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shape_of(self.types[name])

    def shape_of(self, given: Type) -> tuple[int, ...]:
        return tuple(number(size, self.sizes()) for size in given.shape)

    def count(self) -> int:
        """The steps in all graphs."""
        return sum(len(body.steps) for body in self.body.all())


def number(size: Size, sizes: dict[str, int]) -> int:
    return size if isinstance(size, int) else eval(size, {}, sizes)


def text(value: Any) -> str:
    """A setting as code."""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return "(" + "".join(f"{text(item)}, " for item in value).rstrip(" ") + ")"
    return repr(value)
