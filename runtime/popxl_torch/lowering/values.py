"""What each tensor of a graph stands for while the graph is being lowered.

Values are immutable: a tensor that is written to stands for another node from then on. What lasts
(variables, by-reference inputs, slots of remote buffers) is a `Cell` that is written to. A value
may be a view of a cell's memory, for which books are kept here: it is copied before that memory is
written to, if it is still needed then.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable

import torch
from popxl.graph import Graph, Op
from popxl.tensor import Constant, Tensor, Variable
from torch.fx import Node

from popxl_torch.analysis.aliasing import HOST, Key, Uses, Views
from popxl_torch.backends.reference import functions as kernels
from popxl_torch.memory import cells

NOWHERE: frozenset[Key] = frozenset()


class Values:
    """The node, or the cell, that stands for each tensor at the point reached.

    Args:
        call: adds a call of a function to the lowered graph.
        constant: adds a constant to it.
        rule: adds what computes an op from its inputs.

    Attributes:
        position: of the op that is being lowered.
        writes: the lasting memory that ops so far write to.
    """

    def __init__(
        self,
        graph: Graph,
        lead: int,
        call: Callable[..., Node],
        constant: Callable[[Constant], Node],
        rule: Callable[[Op, list[Node]], Node],
    ):
        self.position, self.writes = 0, set[Key]()
        self.views = Views(graph)
        self._uses = Uses(graph, self.views)
        self._lead, self._call, self._constant, self._rule = lead, call, constant, rule
        self._nodes: dict[Tensor, Node] = {}
        self._memory: dict[Tensor, frozenset[Key]] = {}
        self._cells: dict[Tensor, tuple[Node, Key]] = {}

    def bind(self, tensor: Tensor, node: Node, memory: frozenset[Key] = NOWHERE) -> None:
        """Let `tensor`, no view, stand for `node`, whose elements may lie in `memory`."""
        self._nodes[tensor], self._memory[tensor] = node, memory

    def bind_cell(self, tensor: Tensor, node: Node, key: Key) -> None:
        """Let `tensor`, no view, stand for the cell that `node` is."""
        self._cells[tensor] = node, key

    def cell(self, tensor: Tensor) -> tuple[Node, Key] | None:
        """The cell that `tensor` stands for, and its memory's key."""
        return self._cells.get(tensor)

    def node(self, tensor: Tensor) -> Node:
        """A node of what `tensor` holds at this point."""
        view = self.views.op(tensor)
        if view is not None:
            return self._forward(view)
        if tensor in self._cells:
            return self._call(cells.read, self._cells[tensor][0])
        if tensor not in self._nodes:
            self.bind(tensor, self._first(tensor), frozenset({HOST}))
        return self._nodes[tensor]

    def memory(self, tensor: Tensor) -> frozenset[Key]:
        """The lasting memory in which the elements of `tensor` may lie."""
        return NOWHERE.union(*map(self._memory_of_root, self.views.roots(tensor)))

    def _memory_of_root(self, root: Tensor) -> frozenset[Key]:
        if root in self._cells:
            return frozenset({self._cells[root][1]})
        return self._memory.get(root, frozenset({HOST}))

    def assign(self, tensor: Tensor, node: Node, memory: frozenset[Key] = NOWHERE) -> None:
        """Write `node` to `tensor` and all that shares elements with it."""
        view = self.views.op(tensor)
        if view is not None and view.kind == "concat":
            self._assign_parts(view, node, memory)
        elif view is not None and view.kind == "slice":
            self._assign_slice(view, node)
        elif view is not None:
            self.assign(view.inputs[0], self._backward(view, node), memory)
        elif tensor in self._cells:
            cell, key = self._cells[tensor]
            self.protect({key})
            self._call(cells.write, cell, node)
        else:
            self.bind(tensor, node, memory)

    def protect(self, written: set[Key], operands: Iterable[Tensor] = ()) -> list[Node]:
        """Before `written` is written to: copy the values in it that are used later.

        Returns:
            The nodes of the operands of the op that writes, copied where they lie in that memory.
        """
        self.writes |= written
        for tensor, node in list(self._nodes.items()):
            if self._memory[tensor] & written and self._uses.last(tensor) > self.position:
                self.bind(tensor, self._call(kernels.clone, node))
        return [
            self._call(kernels.clone, self.node(t)) if self.memory(t) & written else self.node(t)
            for t in operands
        ]

    def _first(self, tensor: Tensor) -> Node:
        if isinstance(tensor, Constant):
            return self._constant(tensor)
        if isinstance(tensor, Variable) and tensor._sharding is not None:
            raise ValueError(
                f"{tensor.name} is spread over replicas: compute with the part that a replica "
                "holds, which popxl.replica_sharded_variable or ops.remote_load gives"
            )
        if isinstance(tensor, Variable):
            raise ValueError(
                f"{tensor.name} is a remote variable: load it with ops.remote_load before use"
            )
        raise ValueError(f"{tensor.name} is used before it is made")

    def _forward(self, view: Op) -> Node:
        """A node of what a view holds."""
        return self._rule(view, [self.node(t) for t in view.inputs])

    def _backward(self, view: Op, node: Node) -> Node:
        """What is viewed, where the view of all its elements holds `node`."""
        if view.kind == "reshape":
            return self._call(kernels.reshape, node, self._lead, view.inputs[0].shape)
        order = view.permutation
        back = tuple(order.index(axis) for axis in range(len(order)))
        return self._call(kernels.permute, node, self._lead, back)

    def _assign_slice(self, view: Op, node: Node) -> None:
        """Write `node` to a part of what is viewed."""
        base = view.inputs[0]
        if base in self._cells:
            cell, key = self._cells[base]
            self.protect({key})
            self._call(cells.write_part, cell, node, self._lead, view.bounds)
        else:
            whole = self._call(kernels.with_part, self.node(base), node, self._lead, view.bounds)
            self.assign(base, whole)

    def _assign_parts(self, view: Op, node: Node, memory: frozenset[Key]) -> None:
        """Write `node` to the tensors that a view joins.

        Raises:
            ValueError: where two of them share elements, which then had two values.
        """
        for a, b in itertools.combinations(view.inputs, 2):
            if a is b or self.views.overlap(a, b):
                raise ValueError(
                    f"{view.outputs[0].name} joins {a.name} and {b.name}, which share elements: "
                    "it cannot be written to; join them by ops.concat"
                )
        sizes, axis = [t.shape[view.axis] for t in view.inputs], view.axis - view.outputs[0].rank
        parts = self._call(torch.split, node, sizes, axis)
        for number, tensor in enumerate(view.inputs):
            self.assign(tensor, self._call(operator.getitem, parts, number), memory)
