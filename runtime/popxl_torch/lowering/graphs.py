"""From a program's graphs to callables on torch tensors, one `torch.fx.GraphModule` a graph.

`rules*.py` say what an op becomes that computes; `OPS` has the others. `values.py` keeps what
tensors stand for meanwhile.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from popxl.graph import Graph, Op
from popxl.remote_buffer import RemoteBuffer
from popxl.tensor import Constant, Shard, Tensor, Variable
from torch.fx import GraphModule, Node

from popxl_torch.analysis.aliasing import Key, slots_updated_in_place
from popxl_torch.analysis.loans import loans
from popxl_torch.analysis.op_facts import facts_of, is_view
from popxl_torch.backends.back_end import BackEnd
from popxl_torch.backends.reference import functions as kernels
from popxl_torch.collectives.across import AcrossProcesses
from popxl_torch.collectives.mesh import Mesh
from popxl_torch.collectives.within import Collectives
from popxl_torch.fusion.chains import Chain, chains, in_place
from popxl_torch.fusion.groups import Fusion
from popxl_torch.fusion.products import Product, products
from popxl_torch.host_streams import HostStreams
from popxl_torch.lowering import (
    calls,
    declared,  # noqa: F401 - imported to register what is declared, and the rules
    outside,
    placement,
    rules_table,  # noqa: F401
    rules_updates,  # noqa: F401
    updates,
)
from popxl_torch.lowering.calls import Lowered
from popxl_torch.lowering.rules import rule_of
from popxl_torch.lowering.values import NOWHERE, Values
from popxl_torch.memory.arrays import to_torch
from popxl_torch.memory.cells import RemoteStore
from popxl_torch.replay.replay import Replays

OPS: dict[str, Callable[[GraphLowering, Op], None]] = {
    "call": calls.call,
    "repeat": calls.repeat,
    "conditional": calls.conditional,
    "remote_load": outside.remote_load,
    "remote_load_": outside.remote_load_,
    "remote_store": outside.remote_store,
    "host_load": outside.host_load,
    "host_store": outside.host_store,
    "dynamic_update": updates.dynamic_update,
}
"""What lowers the kinds of op that concern memory; any other kind has a rule."""


@dataclass(frozen=True)
class Surroundings:
    """What lowered graphs reach besides their inputs."""

    mesh: Mesh
    device: torch.device
    remote: dict[RemoteBuffer, RemoteStore]
    streams: HostStreams
    back_end: BackEnd
    declared: bool  # whether graphs that were declared are computed as what they stand for
    replays: Replays
    collectives: Collectives | AcrossProcesses


class Deferred(torch.nn.Module):
    """A lowered graph, compiled as it is first run: passes of some sizes never are."""

    def __init__(self, root: torch.nn.Module, graph: torch.fx.Graph, name: str):
        super().__init__()
        self.root, self._graph, self._name = root, graph, name

    @cached_property
    def compiled(self) -> GraphModule:
        return GraphModule(self.root, self._graph, class_name=self._name)

    @property
    def code(self) -> str:
        """The graph as Python."""
        return self.compiled.code

    def forward(self, *inputs: Any) -> tuple[torch.Tensor, ...]:
        self.forward = self.compiled.forward  # type: ignore[method-assign]
        return self.compiled.forward(*inputs)


class Lowering:
    """Lowers the graphs of one program, each once for each choice of inputs by reference."""

    def __init__(self, surroundings: Surroundings):
        self.around = surroundings
        self._done: dict[tuple[Graph, frozenset[int]], Lowered] = {}

    def lower(self, graph: Graph, by_ref: frozenset[int]) -> Lowered:
        """The callable of `graph`; `by_ref` has the indices of its inputs that are cells."""
        key = (graph, by_ref)
        if key not in self._done:
            self._done[key] = GraphLowering(self, graph, list(graph._inputs), by_ref).run()
        return self._done[key]

    def lower_main(self, graph: Graph) -> tuple[Lowered, list[Variable]]:
        """The main graph; its arguments are the cells of the variables that are not remote."""
        kept = {t: v for t in graph.tensors if (v := _variable_in(t)) is not None}
        lowering = GraphLowering(self, graph, list(kept), frozenset(range(len(kept))))
        return lowering.run(), list(kept.values())


class GraphLowering:
    """The lowering of one graph; also the `Emitter` that rules work with."""

    def __init__(
        self, program: Lowering, graph: Graph, inputs: list[Tensor], by_ref: frozenset[int]
    ):
        self.program, self.graph, self.around = program, graph, program.around
        self.device, self.lead = self.around.device, self.around.mesh.lead
        self.collectives, self.back_end = self.around.collectives, self.around.back_end
        self.fx = torch.fx.Graph()
        self.root = torch.nn.Module()
        self.values = Values(graph, self.lead, self.call, self._constant, self._rule)
        self.in_place_slots = slots_updated_in_place(graph, self.values.views)
        self.loans = loans(graph, self.values.views)
        self.in_place_slots |= {loan.load for loan in self.loans}
        self.lent_by_store = {loan.store: loan.load.outputs[0] for loan in self.loans}
        self.groups = self._groups_of_kernels()
        for index, tensor in enumerate(inputs):
            self._bind_input(tensor, index, index in by_ref)

    def run(self) -> Lowered:
        for position, op in enumerate(self.graph._ops):
            self.values.position = position
            group = self.groups.get(op)
            if group is None:
                self._lower_op(op)
            elif op is group.ops[-1]:
                self.values.bind(group.output, self._grouped(group))
        outputs = self.graph._outputs
        self.fx.output(tuple(self.values.node(t) for t in outputs))
        module = Deferred(self.root, self.fx, _identifier(self.graph.name or "main"))
        shares = tuple(self.values.memory(t) for t in outputs)
        return Lowered(module, shares, frozenset(self.values.writes))

    # --- what rules use ---

    def call(self, function: Callable, *args: Any, **kwargs: Any) -> Node:
        return self.fx.call_function(function, args, kwargs)

    def _rule(self, op: Op, args: list[Node]) -> Any:
        return rule_of(op.kind)(self, op, args)

    # --- inputs, constants, modules ---

    def _bind_input(self, tensor: Tensor, index: int, by_ref: bool) -> None:
        node, key = self.fx.placeholder(_identifier(tensor.name)), ("in", index)
        if by_ref:
            self.values.bind_cell(tensor, node, key)
        else:
            self.values.bind(tensor, node, frozenset({key}))

    def _constant(self, tensor: Constant) -> Node:
        data = placement.load_constant(to_torch(tensor._data), self.device)
        name = f"constant_{len(self.root._buffers)}"
        self.root.register_buffer(name, data.reshape((1,) * self.lead + tensor.shape))
        return self.fx.get_attr(name)

    def call_module(self, prefix: str, module: torch.nn.Module, args: list[Node]) -> Node:
        name = f"{_identifier(prefix)}_{len(self.root._modules)}"
        self.root.add_module(name, module)
        return self.fx.call_module(name, tuple(args))

    # --- ops ---

    def _lower_op(self, op: Op) -> None:
        facts_of(op)  # raises where the table lacks the kind
        if op.kind in OPS:
            OPS[op.kind](self, op)
        elif op.modifies:
            self._lower_inplace(op)
        elif not is_view(op):
            self.define(op, self.apply_rule(op), self._shared_by_rule(op))

    def _lower_inplace(self, op: Op) -> None:
        chain = in_place(op, self.lead) if self.back_end.chains else None
        if chain is not None:
            self.values.assign(op.inputs[0], self._grouped(chain))
        else:
            self.values.assign(op.inputs[0], self.apply_rule(op)[0], self._shared_by_rule(op))

    def apply_rule(self, op: Op) -> list[Node]:
        """The nodes of a plain op. Wide unsigned integers are computed with as int64."""
        moved = min(facts_of(op).moved, len(op.inputs))
        args = [self.values.node(t) for t in op.inputs]
        for i in range(moved, len(args)):
            args[i] = self._if_wide(args[i], op.inputs[i], torch.int64)
        made = self._rule(op, self._placed(op, args))
        nodes = made if isinstance(made, list) else [made]
        if moved:
            return nodes
        outputs = op.outputs or op.inputs[:1]
        pairs = zip(nodes, outputs, strict=True)
        return [self._if_wide(node, t, t.dtype.as_torch()) for node, t in pairs]

    def _placed(self, op: Op, args: list[Node]) -> list[Node]:
        """The inputs in one place; see `placement.py`."""
        whole = [t for t in op.inputs if not t.dtype.is_floating_point]
        if self.device.type == "cpu" or not whole or facts_of(op).integers == "apart":
            return args
        if op.kind == "cast" and op.outputs[0].dtype.is_floating_point:
            return [self.call(placement.move, args[0], self.device)]
        if len(args) == 1:
            return args
        both = self.call(placement.together, *args)
        return [self.call(operator.getitem, both, number) for number in range(len(args))]

    def _if_wide(self, node: Node, tensor: Tensor, dtype: torch.dtype) -> Node:
        """A node as `dtype`, where it is of a tensor of wide unsigned integers."""
        wide = updates.is_wide_unsigned(tensor)
        return self.call(kernels.cast, node, dtype) if wide else node

    def _shared_by_rule(self, op: Op) -> frozenset[Key]:
        """The memory that the results of a plain op may lie in."""
        if not facts_of(op).shares:
            return NOWHERE
        return NOWHERE.union(*(self.values.memory(t) for t in op.inputs))

    def define(self, op: Op, nodes: list[Node], memory: frozenset[Key]) -> None:
        """Let the results of an op be nodes, whose elements may lie in `memory`."""
        for tensor, node in zip(op.outputs, nodes, strict=True):
            self.values.bind(tensor, node, memory)

    # --- groups of ops ---

    def _groups_of_kernels(self) -> dict[Op, Product | Chain]:
        """What kernels do at once, by each of its ops."""
        mesh = self.around.mesh if isinstance(self.collectives, Collectives) else None
        fusion = Fusion(self.graph, {loan.call for loan in self.loans})
        found: list[Product | Chain] = []
        if self.back_end.products:
            found += products(self.graph, fusion, mesh)
        if self.back_end.chains:
            found += chains(self.graph, fusion, self.lead)
        return {op: group for group in found for op in group.ops}

    def _grouped(self, group: Product | Chain) -> Node:
        run = group.lowered(self.lead, self.back_end, self.collectives)
        return self.call(run, *map(self.values.node, group.inputs))


def _variable_in(t: Tensor) -> Variable | None:
    """The variable whose cell a tensor of the main graph stands for, if any."""
    if isinstance(t, Shard):
        return t._of
    whole = isinstance(t, Variable) and t._remote is None and t._sharding is None
    return t if whole else None  # type: ignore[return-value]


def _identifier(name: str) -> str:
    cleaned = "".join(c if c.isalnum() else "_" for c in name)
    return cleaned if cleaned[:1].isalpha() else f"t_{cleaned}"
