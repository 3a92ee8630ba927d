"""Who shares memory, and who is used when: what decides about copies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from popxl.graph import Graph, Op
from popxl.remote_buffer import RemoteBuffer
from popxl.tensor import Tensor

from popxl_torch.analysis.op_facts import facts_of, is_view
from popxl_torch.analysis.reach import buffers_of_called, touches

Key = tuple[str, int]
"""Memory that lasts: ("in", index of a graph's input), ("remote", id of a buffer) or HOST."""

HOST: Key = ("host", 0)
"""Arrays of the host, such as constants and what streams bring: never written to."""


class Views:
    """The tensors that share elements of others: what `reshape_` and its like make."""

    def __init__(self, graph: Graph):
        self._ops = {op.outputs[0]: op for op in graph._ops if is_view(op)}
        self._roots: dict[Tensor, tuple[Tensor, ...]] = {}

    def op(self, tensor: Tensor) -> Op | None:
        """The op that makes `tensor` a view of its inputs; None where it is no view."""
        return self._ops.get(tensor)

    def roots(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The tensors whose elements `tensor` shares; itself alone where it is no view."""
        if tensor not in self._ops:
            return (tensor,)
        if tensor not in self._roots:
            each = (self.roots(t) for t in self._ops[tensor].inputs)
            self._roots[tensor] = tuple(dict.fromkeys(root for roots in each for root in roots))
        return self._roots[tensor]

    def overlap(self, a: Tensor, b: Tensor) -> bool:
        """Whether `a` and `b` may share an element; they do not where this is False."""
        return any(
            one.meets(other)
            for root in self.roots(a)
            for one in self._parts(a, root)
            for other in self._parts(b, root)
        )

    def _parts(self, tensor: Tensor, root: Tensor) -> list[_Part]:
        """The parts of `root` that `tensor` is made of."""
        if tensor is root:
            return [_Part(tuple(map(range, root.shape)), tuple(range(root.rank)))]
        op = self._ops.get(tensor)
        if op is None:
            return []
        return [part.seen_by(op) for t in op.inputs for part in self._parts(t, root)]


@dataclass(frozen=True)
class _Part:
    """Elements of a tensor, or at least all those that a view of it shares.

    Attributes:
        ranges: their indices along each axis of the tensor.
        axes: which of these axes each axis of the view is; None where it is none of them.
    """

    ranges: tuple[range, ...]
    axes: tuple[int, ...] | None

    def meets(self, other: _Part) -> bool:
        """Whether two parts of one tensor have an element in common."""
        pairs = zip(self.ranges, other.ranges, strict=True)
        return all(not set(a).isdisjoint(b) for a, b in pairs)

    def seen_by(self, op: Op) -> _Part:
        """The part that the view of this one that `op` makes shares."""
        if self.axes is None or op.kind in ("reshape", "concat"):
            return _Part(self.ranges, None)
        if op.kind == "transpose":
            return _Part(self.ranges, tuple(self.axes[p] for p in op.permutation))
        ranges = list(self.ranges)
        for axis, (start, step, length) in zip(self.axes, op.bounds, strict=True):
            of = ranges[axis]
            first, end = (of.start + at * of.step for at in (start, start + step * length))
            ranges[axis] = range(first, end, step * of.step)
        return _Part(tuple(ranges), self.axes)


class Uses:
    """Where in a graph each tensor, or a view of it, is used last."""

    def __init__(self, graph: Graph, views: Views):
        self._last: dict[Tensor, float] = {}
        for position, op in enumerate(graph._ops):
            for tensor in op.inputs:
                self._last.update(dict.fromkeys(views.roots(tensor), position))
        for tensor in graph._outputs:
            self._last.update(dict.fromkeys(views.roots(tensor), math.inf))

    def last(self, root: Tensor) -> float:
        """The position of the last op that uses `root`; infinite for an output, -1 for none."""
        return self._last.get(root, -1)


def slots_updated_in_place(graph: Graph, views: Views) -> set[Op]:
    """The loads of slots that may be worked on where they are.

    That is a load whose tensor is written to and, as its last use, stored back to the same slot,
    with no other op on the buffer in between: the usual life of a KV cache.
    """
    called = buffers_of_called(graph)
    return {
        op
        for position, op in enumerate(graph._ops)
        if facts_of(op).cost == "loaded" and _ends_in_its_slot(graph, position, called, views)
    }


def _ends_in_its_slot(
    graph: Graph, start: int, called: dict[Graph, set[RemoteBuffer]], views: Views
) -> bool:
    load = graph._ops[start]
    (loaded,) = load.outputs
    uses = [i for i, op in enumerate(graph._ops) if loaded in roots_of(views, op.inputs)]
    if not uses or loaded in roots_of(views, graph._outputs):
        return False
    store, between = graph._ops[uses[-1]], graph._ops[start + 1 : uses[-1]]
    written = roots_of(views, [op.inputs[i] for op in between for i in op.modifies])
    return (
        facts_of(store).remote == "store"
        and store.inputs[0] is loaded
        and store.buffer is load.buffer
        and store.offset == load.offset
        and store.inputs[1:] == load.inputs
        and loaded in written
        and not written & roots_of(views, load.inputs)
        and not any(touches(op, load.buffer, called) for op in between)
    )


def roots_of(views: Views, tensors: Iterable[Tensor]) -> set[Tensor]:
    """The tensors whose elements any of these share."""
    return {root for tensor in tensors for root in views.roots(tensor)}
