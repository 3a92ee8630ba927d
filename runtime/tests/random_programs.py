"""Random programs out of ops that view, write in place, reach remote buffers and call graphs.

A program is steps that name tensors by number. `Writer` makes one; `run_body` takes its steps on a
machine, which has a method for each kind of step: on PopXL or on numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Shape = tuple[int, ...]
SHAPES: tuple[Shape, ...] = ((4,), (2, 2), (1, 4))
BUFFERS: tuple[tuple[Shape, int], ...] = (((4,), 3), ((2, 2), 2))
"""Shape and entries of each remote buffer."""


@dataclass
class Step:
    """`results = kind(*operands, **settings)`; operands are numbers of tensors."""

    kind: str
    results: list[int]
    operands: list[int]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Body:
    """A graph: inputs (the last two are the scalars `offset` and `condition`), steps, outputs."""

    inputs: list[int]
    shapes: list[Shape]
    by_ref: list[bool]
    steps: list[Step] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def stays_inside(self) -> bool:
        """Whether it stores nothing and involves no other replica, nor do those it calls."""
        called = [b for s in self.steps for b in s.settings.values() if isinstance(b, Body)]
        kinds = {step.kind for step in self.steps}
        return not kinds & {"store", "sum_"} and all(body.stays_inside() for body in called)


class Writer:
    """Writes the steps of one body with random choices."""

    def __init__(self, rng: np.random.Generator, shapes: Sequence[Shape], depth: int, main: bool):
        self.rng, self.depth, self.main = rng, depth, main
        count = len(shapes) + 2
        by_ref = [not main and bool(rng.random() < 0.5) for _ in shapes]
        self.body = Body(list(range(count)), [*shapes, (), ()], [*by_ref, False, False])
        self.shape = dict(enumerate(self.body.shapes))
        self.root = {number: number for number in self.shape}
        self.offset, self.condition = count - 2, count - 1

    def write(self, steps: int) -> Body:
        for _ in range(steps):
            kind = self.rng.choice(list(WEIGHTS), p=PROBABILITIES)
            getattr(self, f"_{kind}")()
        return self.body

    def add(self, kind: str, operands: list[int], shapes: Sequence[Shape] = (), **settings) -> list:
        results = [len(self.shape) + i for i in range(len(shapes))]
        for number, shape in zip(results, shapes, strict=True):
            self.shape[number], self.root[number] = shape, number
        self.body.steps.append(Step(kind, results, operands, settings))
        return results

    def any(self, shape: Shape | None = None) -> int:
        """A tensor (of that shape: another one reshaped where there is none), newer ones rather."""
        found = [n for n, s in self.shape.items() if s and (shape is None or s == shape)]
        if shape is not None and (not found or self.rng.random() < 0.2):
            size = int(np.prod(shape))
            (made,) = self.add("reshape", [self._any_of_size(size)], [shape], shape=shape)
            return made
        return int(self.rng.choice(found[-6:] if self.rng.random() < 0.6 else found))

    def _any_of_size(self, size: int) -> int:
        sizes = [n for n, s in self.shape.items() if s and np.prod(s) == size]
        if sizes:
            return int(self.rng.choice(sizes))
        if size == 2:
            (made,) = self.add("head", [self.any((4,))], [(2,)], first=0)
        else:
            (made,) = self.add("join", [self.any((2,)), self.any((2,))], [(4,)])
        return made

    # --- kinds of steps ---

    def _binary(self) -> None:
        a = self.any()
        shape = self.shape[a]
        self.add(str(self.rng.choice(["add", "sub", "mul"])), [a, self.any(shape)], [shape])

    def _view(self) -> None:
        kind = self.rng.choice(["reshape", "transpose", "same", "head", "join", "pick"])
        if kind == "reshape":
            shape = SHAPES[self.rng.integers(len(SHAPES))]
            self.add("reshape", [self._any_of_size(4)], [shape], shape=shape)
        elif kind == "transpose":
            a = self.any()
            self.add("transpose", [a], [self.shape[a][::-1]])
        elif kind == "same":
            a = self.any()
            self.add("same", [a], [self.shape[a]], way=int(self.rng.integers(7)))
        elif kind == "head":
            self.add("head", [self.any((4,))], [(2,)], first=int(self.rng.integers(3)))
        elif kind == "join":
            self.add("join", [self.any((2,)), self.any((2,))], [(4,)])
        else:
            self.add("pick", [self.any((4,)), self.offset], [(2,)])

    def _alias(self) -> None:
        if self.rng.random() < 0.5:
            shape = SHAPES[self.rng.integers(len(SHAPES))]
            a = self._any_of_size(4)
            (made,) = self.add("reshape_", [a], [shape], shape=shape)
        else:
            a = self.any()
            (made,) = self.add("transpose_", [a], [self.shape[a][::-1]])
        self.root[made] = self.root[a]

    def _inplace(self) -> None:
        kind = str(self.rng.choice(["add_", "copy_", "step_", "put_", "sum_", "local_", "next_"]))
        if kind == "next_":
            self.add("next_", [self.offset])
        elif kind == "put_":
            a = self.any(((4,), (2, 2))[self.rng.integers(2)])
            self.add("put_", [a, self.offset, self.any((2,))])
        else:
            a = self.any()
            others = [self.any(self.shape[a])] if kind in ("add_", "copy_") else []
            self.add(kind, [a, *others])

    def _remote(self) -> None:
        kind = str(self.rng.choice(["load", "load_", "store", "update"]))
        buffer = int(self.rng.integers(len(BUFFERS)))
        shape, entries = BUFFERS[buffer]
        fixed = int(self.rng.integers(entries)) if self.rng.random() < 0.5 else None
        offset = [self.offset] if fixed is None else []
        where = {"buffer": buffer, "fixed": fixed}
        if kind == "load":
            self.add("load", offset, [shape], **where)
        elif kind == "update":
            self._update_slot(offset, where, shape)
        else:
            self.add(kind, [self.any(shape), *offset], **where)

    def _update_slot(self, offset: list[int], where: dict[str, Any], shape: Shape) -> None:
        """The life of a cache: loaded, written to, stored back."""
        (slot,) = self.add("load", offset, [shape], **where)
        for _ in range(self.rng.integers(1, 4)):
            if self.rng.random() < 0.6:
                self.add("put_", [slot, self.offset, self.any((2,))])
            elif self.depth:
                self._call(slot)
            else:
                self._inplace()
        self.add("store", [slot, *offset], **where)

    def _tell(self) -> None:
        if self.main:
            self.add("tell", [self.any()])

    # --- other graphs ---

    def _graph(self, first: int | None = None) -> tuple[Body, list[int]]:
        """A new graph and what to call it with; tensors that share elements go in once by ref."""
        operands = [self.any() for _ in range(self.rng.integers(1, 4))]
        operands[:1] = [first] if first is not None else operands[:1]
        shapes = [self.shape[n] for n in operands]
        writer = Writer(self.rng, shapes, self.depth - 1, main=False)
        seen = set()
        for i, n in enumerate(operands):
            writer.body.by_ref[i] &= self.root[n] not in seen
            seen |= {self.root[n]} if writer.body.by_ref[i] else set()
        body = writer.write(int(self.rng.integers(1, 6)))
        body.outputs = [writer.any(s) for s in shapes[: self.rng.integers(len(shapes) + 1)]]
        return body, [*operands, self.offset, self.condition]

    def _call(self, first: int | None = None) -> None:
        if not self.depth:
            return
        body, operands = self._graph(first)
        outputs = [body.shapes[i] for i in range(len(body.outputs))]
        if self.rng.random() < 0.5:
            self.add("call", operands, outputs, graph=body)
        else:
            self.add("repeat", operands, outputs, graph=body, count=int(self.rng.integers(4)))

    def _cond(self) -> None:
        if not self.depth:
            return
        (then, operands), others = self._graph(), self._graph()
        roots = [self.root[n] for n in operands]
        # Both take the same tensors. By reference, two that share elements are refused.
        fits = others[0].shapes == then.shapes and len(set(roots)) == len(roots)
        other = others[0] if fits else then
        count = min(len(then.outputs), len(other.outputs))
        then.outputs, other.outputs = then.outputs[:count], other.outputs[:count]
        shapes = [then.shapes[i] for i in range(count)]
        uniform = not (then.stays_inside() and other.stays_inside())
        self.add("cond", operands, shapes, graph=then, other=other, uniform=uniform)


WEIGHTS = {
    "binary": 3,
    "view": 5,
    "alias": 2,
    "inplace": 6,
    "remote": 5,
    "call": 3,
    "cond": 1,
    "tell": 2,
}
PROBABILITIES = np.array(list(WEIGHTS.values())) / sum(WEIGHTS.values())


def run_body(body: Body, machine: Any, inputs: Sequence[Any]) -> list[Any]:
    """Take the steps of a body on a machine; returns the outputs."""
    tensors = dict(zip(body.inputs, inputs, strict=True))
    for step in body.steps:
        operands = [tensors[n] for n in step.operands]
        made = getattr(machine, step.kind)(*operands, **step.settings)
        tensors.update(zip(step.results, made or [], strict=True))
    return [tensors[n] for n in body.outputs]
