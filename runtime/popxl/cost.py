"""What running a graph costs one replica, worked out from the program alone.

Sizes are upper bounds where a program attends to or slices part of a buffer: the whole is counted.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from popxl.graph import Graph, Op
from popxl.tensor import Tensor, Variable

Origin = str | None
"""Where a tensor's memory is from: "weights", "state" (memory that the program writes) or None."""

VIEWS = ("identity", "reshape", "transpose", "slice", "split", "dynamic_slice")


@dataclass(frozen=True)
class Cost:
    """For one replica.

    Attributes:
        weight_bytes: read from variables and remote buffers that the program never writes.
        state_bytes: read from those that it writes, such as a KV cache (all of it).
        operations: multiplications and additions of matmuls.
        collective_calls: collectives that more than one replica takes part in.
        collective_bytes: of the tensors that go into them.
        state_operations: of `operations`, those with memory that the program writes.
    """

    weight_bytes: int = 0
    state_bytes: int = 0
    operations: int = 0
    collective_calls: int = 0
    collective_bytes: int = 0
    state_operations: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: int) -> Cost:
        return Cost(*(times * a for a in astuple(self)))


def cost_of(graph: Graph) -> Cost:
    """What one run of `graph` costs. Of a conditional's branches the dearer one counts."""
    return _Walk(graph).cost(graph, tuple(None for _ in graph._inputs))[0]


def memory_of(variables: list[Variable], buffers: list) -> tuple[int, int]:
    """Bytes a replica of the variables, and of the remote buffers' slots that hold none."""
    held = sum(num_bytes(v) for v in variables)
    slots = sum(
        math.prod(b.tensor_shape) * b.tensor_dtype.as_numpy().itemsize * b.entries for b in buffers
    )
    return held, slots - sum(num_bytes(v) for v in variables if v._remote is not None)


def num_bytes(t: Tensor) -> int:
    """Bytes of a tensor on one replica."""
    return t.nelms * t.dtype.as_numpy().itemsize


class _Walk:
    def __init__(self, graph: Graph):
        self._known: dict = {}
        self._written = {op.buffer for op in graph.ir._reachable_ops() if op.kind == "remote_store"}

    def cost(self, graph: Graph, origins: tuple[Origin, ...]) -> tuple[Cost, tuple[Origin, ...]]:
        """The cost of a graph whose inputs come from `origins`, and where its outputs come from."""
        key = (graph, origins)
        if key not in self._known:
            self._known[key] = self._walk(graph, dict(zip(graph._inputs, origins, strict=True)))
        return self._known[key]

    def _walk(self, graph: Graph, origin: dict[Tensor, Origin]) -> tuple[Cost, tuple[Origin, ...]]:
        total = Cost()
        for op in graph._ops:
            given = tuple(origin.get(t, _own_origin(t)) for t in op.inputs)
            cost, made = self._op(op, given)
            total += cost
            origin.update(zip(op.outputs, made, strict=True))
        return total, tuple(origin.get(t) for t in graph._outputs)

    def _op(self, op: Op, given: tuple[Origin, ...]) -> tuple[Cost, tuple[Origin, ...]]:
        if op.kind == "call":
            return self.cost(op.graphs[0], given)
        if op.kind == "repeat":
            cost, made = self.cost(op.graphs[0], given)
            return cost * op.count, made
        if op.kind == "conditional":
            return self._dearer(op, given)
        if op.kind == "remote_load":
            return Cost(), ("state" if op.buffer in self._written else "weights",)
        if op.kind in VIEWS:
            return Cost(), (given[0],) * len(op.outputs)
        return self._plain(op, given), (None,) * len(op.outputs)

    def _dearer(self, op: Op, given: tuple[Origin, ...]) -> tuple[Cost, tuple[Origin, ...]]:
        split = 1 + len(op.graphs[0]._inputs)
        branches = [
            self.cost(op.graphs[0], given[1:split]),
            self.cost(op.graphs[1], given[split:]),
        ]
        return max(branches, key=lambda branch: astuple(branch[0]))

    def _plain(self, op: Op, given: tuple[Origin, ...]) -> Cost:
        if op.kind == "remote_store":
            return Cost()
        read = {"weights": 0, "state": 0}
        for index, (tensor, origin) in enumerate(zip(op.inputs, given, strict=True)):
            if origin and index not in op.modifies:
                picked = op.kind == "gather" and index == 0
                read[origin] += num_bytes(op.outputs[0] if picked else tensor)
        calls, moved = _collective(op)
        operations = _operations(op)
        on_state = operations if "state" in given else 0
        return Cost(read["weights"], read["state"], operations, calls, moved, on_state)


def _own_origin(t: Tensor) -> Origin:
    return "weights" if isinstance(t, Variable) else None


def _operations(op: Op) -> int:
    if op.kind != "matmul":
        return 0
    return 2 * op.outputs[0].nelms * op.inputs[0].shape[-1]


def _collective(op: Op) -> tuple[int, int]:
    if "group" not in op.attributes or max(map(op.group.assignment.count, {0})) == 1:
        return 0, 0
    return 1, num_bytes(op.inputs[0])
