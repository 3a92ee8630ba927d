"""Which ops of a graph may be computed at once, and so by one kernel.

A group is proposed by whoever has a kernel for it, checked here, and only then taken. It is
computed at the place of its last op.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from popxl.graph import Graph, Op
from popxl.tensor import Tensor

from popxl_torch.analysis.op_facts import facts_of, is_view
from popxl_torch.analysis.reach import buffers_of_called


class Fusion:
    """The groups that were taken in one graph, and what is known of it to check further ones."""

    def __init__(self, graph: Graph, writing: Collection[Op] = ()):
        """
        Args:
            writing: ops that write to memory besides those that say so.
        """
        self._ops = graph._ops
        self._position = {op: i for i, op in enumerate(graph._ops)}
        self._outputs = set(graph._outputs)
        self._users: dict[Tensor, list[Op]] = {}
        for op in graph._ops:
            for tensor in dict.fromkeys(op.inputs):
                self._users.setdefault(tensor, []).append(op)
        self._taken: set[Op] = set()
        called = {g for g, buffers in buffers_of_called(graph).items() if buffers}
        self._reaches = [
            bool(op.modifies)
            or op in writing
            or facts_of(op).remote is not None
            or not called.isdisjoint(op.graphs)
            for op in graph._ops
        ]

    def user(self, tensor: Tensor, *kinds: str) -> Op | None:
        """The only op that uses a tensor, of one of these kinds; None where there is no such."""
        users = self._users.get(tensor, [])
        if len(users) != 1 or tensor in self._outputs or users[0].kind not in kinds:
            return None
        return users[0]

    def allows(self, ops: Sequence[Op]) -> bool:
        """Whether these ops, the last one making the result, may be computed where that one is.

        Each belongs to no group yet and writes to nothing; what all but the last make is used by
        them alone; and no other op in between writes to memory or reaches a remote buffer, so that
        what they read is then as it was. The inputs are there by then: an op comes after what it
        reads, and a group that makes one of them ends before the op that reads it.
        """
        group, last = set(ops), ops[-1]
        if group & self._taken or any(op.modifies or is_view(op) for op in ops):
            return False
        places = [self._position[op] for op in ops]
        if places[-1] != max(places):
            return False
        between = range(min(places), places[-1])
        if any(self._reaches[i] and self._ops[i] not in group for i in between):
            return False
        return all(self._is_inside(t, group) for op in ops if op is not last for t in op.outputs)

    def take(self, ops: Sequence[Op]) -> None:
        """Let the ops be a group; `allows` must hold."""
        self._taken.update(ops)

    def _is_inside(self, tensor: Tensor, group: set[Op]) -> bool:
        return tensor not in self._outputs and group.issuperset(self._users.get(tensor, []))
