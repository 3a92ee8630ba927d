"""What running a graph costs one replica, worked out from the program alone.

Sizes are upper bounds where a program attends to or slices part of a buffer: the whole is counted.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, fields

from popxl.graph import Graph, Op
from popxl.ir import Ir
from popxl.replica_grouping import ReplicaGrouping
from popxl.tensor import Shard, Tensor, Variable

from popxl_torch.analysis.op_facts import facts_of, is_view

Origin = str | None
"""Where a tensor's memory is from: "weights", "state" (memory that the program writes) or None."""

ORIGINS: tuple[Origin, ...] = (None, "weights", "state")


@dataclass(frozen=True)
class Collective:
    """One collective, as every replica of a group calls it.

    Attributes:
        kind: "all_reduce", "all_gather" or "reduce_scatter".
        bytes: of the tensor that one replica gives.
        group: who takes part.
    """

    kind: str
    bytes: int
    group: ReplicaGrouping


@dataclass(frozen=True)
class Cost:
    """For one replica.

    Attributes:
        weight_bytes: read from variables and remote buffers that the program never writes.
        state_bytes: read from those that it writes, such as a KV cache (all of it).
        operations: multiplications and additions of matmuls.
        state_operations: of `operations`, those with memory that the program writes.
        calls: ops that compute or move something; views and loads only say where a tensor is.
        process_calls: those collectives in which processes exchange something, where the replicas
            are in several.
        process_bytes: of the tensors that one process's replicas put into these.
        collectives: how often each is called, where more than one replica takes part.
    """

    weight_bytes: int = 0
    state_bytes: int = 0
    operations: int = 0
    state_operations: int = 0
    process_calls: int = 0
    process_bytes: int = 0
    calls: int = 0
    collectives: Counter[Collective] = field(default_factory=Counter, kw_only=True)

    @property
    def collective_calls(self) -> int:
        return self.collectives.total()

    @property
    def collective_bytes(self) -> int:
        """Of the tensors that go into collectives."""
        return sum(times * called.bytes for called, times in self.collectives.items())

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            *(a + b for a, b in zip(self._counts(), other._counts(), strict=True)),
            collectives=self.collectives + other.collectives,
        )

    def __mul__(self, times: int) -> Cost:
        return Cost(
            *(times * count for count in self._counts()),
            collectives=Counter({called: times * n for called, n in self.collectives.items()}),
        )

    def _counts(self) -> tuple[int, ...]:
        return tuple(getattr(self, f.name) for f in fields(self) if f.name != "collectives")


def cost_of(graph: Graph) -> Cost:
    """What one run of `graph` costs. Of a conditional's branches the dearer one counts."""
    return _Walk(graph).cost(graph, tuple(None for _ in graph._inputs))[0]


def memory_of(ir: Ir) -> tuple[int, int]:
    """Bytes a replica of variables, and of remote slots that the program fills itself."""
    variables, buffers = ir.main_graph.variables, ir._remote_buffers
    held = sum(num_bytes(v) for v in variables)
    slots = sum(
        math.prod(b.tensor_shape) * b.tensor_dtype.as_numpy().itemsize * b.entries for b in buffers
    )
    return held, slots - sum(num_bytes(v) for v in variables if v._remote is not None)


def num_bytes(t: Tensor) -> int:
    """Bytes of a tensor on one replica."""
    sharding = t._sharding if isinstance(t, Variable) else None
    elements = t.nelms if sharding is None else sharding.length(t.nelms)
    return elements * t.dtype.as_numpy().itemsize


class _Walk:
    def __init__(self, graph: Graph):
        self._known: dict = {}
        self._together = graph.ir.instance_replication_factor
        self._written = {
            op.buffer for op in graph.ir._reachable_ops() if facts_of(op).remote == "store"
        }

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
        kind = facts_of(op).cost
        if kind == "called" and len(op.graphs) > 1:
            return self._dearer(op, given)
        if kind == "called":
            cost, made = self.cost(op.graphs[0], given)
            return cost * op.attributes.get("count", 1), made
        if kind == "loaded":
            return Cost(), ("state" if op.buffer in self._written else "weights",)
        rows_of_state = kind == "picked" and given[0] == "state"  # read where they are used
        if kind == "view" or rows_of_state:
            return Cost(), (given[0],) * len(op.outputs)
        if is_view(op):  # what joins tensors: read where it is used
            return Cost(), (max(given, key=ORIGINS.index),)
        return self._plain(op, given), (None,) * len(op.outputs)

    def _dearer(self, op: Op, given: tuple[Origin, ...]) -> tuple[Cost, tuple[Origin, ...]]:
        split = 1 + len(op.graphs[0]._inputs)
        branches = [
            self.cost(op.graphs[0], given[1:split]),
            self.cost(op.graphs[1], given[split:]),
        ]
        return max(branches, key=lambda branch: branch[0]._counts())

    def _plain(self, op: Op, given: tuple[Origin, ...]) -> Cost:
        kind = facts_of(op).cost
        if kind == "written":
            return Cost(calls=1)
        read = {"weights": 0, "state": 0}
        for index, (tensor, origin) in enumerate(zip(op.inputs, given, strict=True)):
            if origin and index not in op.modifies:
                picked = kind == "picked" and index == 0
                read[origin] += num_bytes(op.outputs[0] if picked else tensor)
        operations = _operations(op)
        between = self._between_processes(op)
        return Cost(
            weight_bytes=read["weights"],
            state_bytes=read["state"],
            operations=operations,
            state_operations=operations if "state" in given else 0,
            process_calls=1 if between else 0,
            process_bytes=between,
            calls=1,
            collectives=_collectives(op),
        )

    def _between_processes(self, op: Op) -> int:
        """Bytes that a process puts into a collective with other processes; 0 for other ops."""
        local = op.attributes.get("reduction") == "local"
        if not _collectives(op) or local or not op.group._crosses(self._together):
            return 0
        return self._together * num_bytes(op.inputs[0])


def _own_origin(t: Tensor) -> Origin:
    return "weights" if isinstance(t, Variable | Shard) else None


def _operations(op: Op) -> int:
    if facts_of(op).cost != "matmul":
        return 0
    return 2 * op.outputs[0].nelms * op.inputs[0].shape[-1]


def _collectives(op: Op) -> Counter[Collective]:
    if not facts_of(op).exchanges or max(Counter(op.group.assignment).values()) == 1:
        return Counter()
    return Counter([Collective(op.kind, num_bytes(op.inputs[0]), op.group)])
