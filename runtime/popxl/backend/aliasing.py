"""Who shares memory, and who is used when: what decides about copies."""

from __future__ import annotations

import math

from popxl.graph import Graph, Op
from popxl.remote_buffer import RemoteBuffer
from popxl.tensor import Tensor

Key = tuple[str, int]
"""Memory that lasts: ("in", index of a graph's input), ("remote", id of a buffer) or HOST."""

HOST: Key = ("host", 0)
"""Arrays of the host, such as constants and what streams bring: never written to."""


class Views:
    """The tensors that share the elements of another one: what `reshape_` and `transpose_` make."""

    def __init__(self, graph: Graph):
        self._ops = {op.outputs[0]: op for op in graph._ops if op.attributes.get("alias")}

    def op(self, tensor: Tensor) -> Op | None:
        """The op that makes `tensor` a view of its input; None where it is no view."""
        return self._ops.get(tensor)

    def root(self, tensor: Tensor) -> Tensor:
        """The tensor whose elements `tensor` shares; itself where it is no view."""
        while tensor in self._ops:
            tensor = self._ops[tensor].inputs[0]
        return tensor


class Uses:
    """Where in a graph each tensor, or a view of it, is used last."""

    def __init__(self, graph: Graph, views: Views):
        self._last: dict[Tensor, float] = {}
        for position, op in enumerate(graph._ops):
            for tensor in op.inputs:
                self._last[views.root(tensor)] = position
        for tensor in graph._outputs:
            self._last[views.root(tensor)] = math.inf

    def last(self, root: Tensor) -> float:
        """The position of the last op that uses `root`; infinite for an output, -1 for none."""
        return self._last.get(root, -1)


def buffers_of(
    graph: Graph, seen: dict[Graph, set[RemoteBuffer]] | None = None
) -> set[RemoteBuffer]:
    """The remote buffers that a graph, or one it calls, loads from or stores to."""
    seen = {} if seen is None else seen
    if graph not in seen:
        seen[graph] = {op.buffer for op in graph._ops if op.kind.startswith("remote_")}
        for called in graph.called_graphs:
            seen[graph] |= buffers_of(called, seen)
    return seen[graph]


def buffers_of_called(graph: Graph) -> dict[Graph, set[RemoteBuffer]]:
    """`buffers_of` of each graph that an op of `graph` calls."""
    seen: dict[Graph, set[RemoteBuffer]] = {}
    return {called: buffers_of(called, seen) for called in graph.called_graphs}


def slots_updated_in_place(graph: Graph, views: Views) -> set[Op]:
    """The loads of slots that may be worked on where they are.

    That is a load whose tensor is written to and, as its last use, stored back to the same slot,
    with no other op on the buffer in between: the usual life of a KV cache.
    """
    called = buffers_of_called(graph)
    return {
        op
        for position, op in enumerate(graph._ops)
        if op.kind == "remote_load" and _ends_in_its_slot(graph, position, called, views)
    }


def _ends_in_its_slot(
    graph: Graph, start: int, called: dict[Graph, set[RemoteBuffer]], views: Views
) -> bool:
    load = graph._ops[start]
    (loaded,) = load.outputs
    uses = [i for i, op in enumerate(graph._ops) if loaded in map(views.root, op.inputs)]
    if not uses or loaded in map(views.root, graph._outputs):
        return False
    store, between = graph._ops[uses[-1]], graph._ops[start + 1 : uses[-1]]
    written = {views.root(op.inputs[i]) for op in between for i in op.modifies}
    return (
        store.kind == "remote_store"
        and store.inputs[0] is loaded
        and store.buffer is load.buffer
        and store.offset == load.offset
        and store.inputs[1:] == load.inputs
        and loaded in written
        and not written.intersection(map(views.root, load.inputs))
        and not any(_touches(op, load.buffer, called) for op in between)
    )


def _touches(op: Op, buffer: RemoteBuffer, called: dict[Graph, set[RemoteBuffer]]) -> bool:
    if op.kind.startswith("remote_"):
        return op.buffer is buffer
    return any(buffer in called[graph] for graph in op.graphs)
