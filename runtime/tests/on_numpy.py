"""What PopXL means by the steps of random programs, in numpy.

A tensor is a storage and the places of its elements there: tensors made by `reshape_` and
`transpose_` share the storage of another one, all others have their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from random_programs import Body, run_body


@dataclass
class Elements:
    """A tensor: `storage[:, places]`, the first axis being replicas."""

    storage: np.ndarray
    places: np.ndarray

    @classmethod
    def new(cls, value: np.ndarray) -> Elements:
        size = value[0].size
        return cls(value.reshape(len(value), size).copy(), np.arange(size).reshape(value.shape[1:]))

    @property
    def value(self) -> np.ndarray:
        return self.storage[:, self.places]

    @value.setter
    def value(self, new: np.ndarray) -> None:
        self.storage[:, self.places] = new

    def copy(self) -> Elements:
        return Elements.new(self.value)


class OnNumpy:
    """What the steps mean. `slots[buffer]` is `(replicas, entries, *shape)`."""

    def __init__(self, slots: list[np.ndarray]):
        self.slots = slots
        self.told: list[np.ndarray] = []

    def add(self, a, b):
        return [Elements.new(a.value + b.value)]

    def sub(self, a, b):
        return [Elements.new(a.value - b.value)]

    def mul(self, a, b):
        return [Elements.new(a.value * b.value)]

    def reshape(self, a, shape):
        return [Elements.new(a.value.reshape(-1, *shape))]

    def transpose(self, a):
        return [Elements(a.storage, a.places.T).copy()]

    def same(self, a, way):
        return [a.copy()]

    def head(self, a, first):
        return [Elements.new(a.value[:, first : first + 2])]

    def join(self, a, b):
        return [Elements.new(np.concatenate([a.value, b.value], axis=1))]

    def pick(self, a, offset):
        rows = [row[i : i + 2] for row, i in zip(a.value, offset.value, strict=True)]
        return [Elements.new(np.stack(rows))]

    def reshape_(self, a, shape):
        return [Elements(a.storage, a.places.reshape(shape))]

    def transpose_(self, a):
        return [Elements(a.storage, a.places.T)]

    def add_(self, a, b):
        a.value = a.value + b.value

    def copy_(self, a, b):
        a.value = b.value

    def step_(self, a):
        a.value = (a.value + 1) % 97

    def next_(self, offset):
        offset.value = (offset.value + 1) % 2

    def put_(self, a, offset, part):
        changed, parts = a.value, part.value.copy()
        for row, i, new in zip(changed, offset.value, parts, strict=True):
            row[i : i + (2 if row.ndim == 1 else 1)] = new
        a.value = changed

    def sum_(self, a):
        a.value = np.broadcast_to(a.value.sum(0, dtype=np.int32), a.value.shape)

    def local_(self, a):
        pass

    def _places(self, offset: tuple[Elements, ...], fixed: int | None) -> tuple:
        count = len(self.slots[0])
        return np.arange(count), offset[0].value if offset else np.full(count, fixed)

    def load(self, *offset, buffer, fixed):
        return [Elements.new(self.slots[buffer][self._places(offset, fixed)])]

    def load_(self, a, *offset, buffer, fixed):
        a.value = self.slots[buffer][self._places(offset, fixed)]

    def store(self, a, *offset, buffer, fixed):
        self.slots[buffer][self._places(offset, fixed)] = a.value

    def tell(self, a):
        self.told.append(a.value)

    def _enter(self, body: Body, operands: Sequence[Elements]) -> list[Elements]:
        return [t if ref else t.copy() for t, ref in zip(operands, body.by_ref, strict=True)]

    def call(self, *operands, graph):
        outputs = run_body(graph, self, self._enter(graph, operands))
        return [t.copy() for t in outputs]

    def repeat(self, *operands, graph, count):
        fed = self._enter(graph, operands)
        outputs = [t.copy() for t in fed[: len(graph.outputs)]]
        for number in range(count):
            for t, output in zip(fed, outputs if number else [], strict=False):
                t.value = output.value
            # What a round does to an input by value is gone in the next one.
            inside = self._enter(graph, fed)
            outputs = [t.copy() for t in run_body(graph, self, inside)]
        return outputs

    def cond(self, *operands, graph, other, uniform):
        chosen = operands[-1].value
        if uniform:
            chosen = np.full_like(chosen, chosen.all())
        if chosen.all() or not chosen.any():
            return self.call(*operands, graph=graph if chosen.all() else other)
        return self._each_its_own(chosen, operands, graph, other)

    def _each_its_own(self, chosen, operands, graph, other):
        before = [t.storage.copy() for t in operands]
        results, after = [], []
        for body in (graph, other):
            for t, storage in zip(operands, before, strict=True):
                t.storage[:] = storage
            results.append(self.call(*operands, graph=body))
            after.append([t.storage.copy() for t in operands])
        for t, a, b in zip(operands, *after, strict=True):
            t.storage[:] = np.where(chosen[:, None], a, b)
        for a, b in zip(*results, strict=True):
            a.storage[:] = np.where(chosen[:, None], a.storage, b.storage)
        return results[0]
