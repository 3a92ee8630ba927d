"""From a program's graphs to callables on torch tensors, one `torch.fx.GraphModule` a graph.

Values are immutable: an op that writes in place to a local value is lowered to its out-of-place form
and the tensor stands for the result from then on. What lasts (variables, by-reference inputs, slots
of remote buffers) is a `Cell` that is written to. `aliasing.py` says when a value that shares a
cell's memory has to be copied first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from popxl.backend import cells, kernels
from popxl.backend.aliasing import Key, Uses, buffers_of, slots_updated_in_place
from popxl.backend.cells import RemoteStore
from popxl.backend.collectives import Collectives
from popxl.backend.composites import Composites
from popxl.backend.control import Conditional, Repeat
from popxl.backend.mesh import Mesh
from popxl.backend.rules import RULES, VIEWS, region
from popxl.graph import Graph, Op
from popxl.remote_buffer import RemoteBuffer
from popxl.streams import Stream
from popxl.tensor import Constant, Tensor, Variable


@dataclass(frozen=True)
class Lowered:
    """A graph as a callable, and what it does to memory that is not its own."""

    module: torch.nn.Module
    aliases: tuple[frozenset[Key], ...]
    """For each output: the inputs ("in", index) and buffers ("remote", id) it may share memory with."""
    writes: frozenset[Key]


@dataclass(frozen=True)
class Surroundings:
    """What lowered graphs reach besides their inputs."""

    mesh: Mesh
    device: torch.device
    remote: dict[RemoteBuffer, RemoteStore]
    load: Callable[[Stream], Callable[[], torch.Tensor]]
    store: Callable[[Stream], Callable[[torch.Tensor], None]]
    composites: Composites


class Lowering:
    """Lowers the graphs of one program, each once for each choice of inputs by reference."""

    def __init__(self, surroundings: Surroundings):
        self.around = surroundings
        self._done: dict[tuple[Graph, frozenset[int]], Lowered] = {}

    def lower(self, graph: Graph, by_ref: frozenset[int]) -> Lowered:
        """The callable of `graph`: one argument an input (a `Cell` where by reference), a tuple out."""
        key = (graph, by_ref)
        if key not in self._done:
            self._done[key] = _GraphLowering(self, graph, list(graph._inputs), by_ref).run()
        return self._done[key]

    def lower_main(self, graph: Graph) -> tuple[Lowered, list[Variable]]:
        """The main graph; its arguments are the cells of the variables that are not remote."""
        variables = [v for v in graph.variables if v._remote is None]
        lowering = _GraphLowering(self, graph, list(variables), frozenset(range(len(variables))))
        return lowering.run(), variables


class _GraphLowering:
    """The lowering of one graph; also the `Emitter` that rules work with."""

    def __init__(
        self, program: Lowering, graph: Graph, inputs: list[Tensor], by_ref: frozenset[int]
    ):
        self.program, self.graph, self.inputs, self.by_ref = program, graph, inputs, by_ref
        self.mesh, self.device = program.around.mesh, program.around.device
        self.lead = self.mesh.lead
        self.collectives = Collectives(self.mesh)
        self.fx = torch.fx.Graph()
        self.root = torch.nn.Module()
        self.values: dict[Tensor, Node] = {}
        self.cells: dict[Tensor, tuple[Node, Key]] = {}
        self.aliases: dict[Tensor, frozenset[Key]] = {}
        self.links: dict[Tensor, list[Tensor]] = {}
        self.uses = Uses(graph)
        self.in_place_slots = slots_updated_in_place(graph)
        self.writes: set[Key] = set()
        self.position = 0

    def run(self) -> Lowered:
        for index, tensor in enumerate(self.inputs):
            node = self.fx.placeholder(_identifier(tensor.name))
            key: Key = ("in", index)
            if index in self.by_ref:
                self.cells[tensor] = (node, key)
            else:
                self.values[tensor], self.aliases[tensor] = node, frozenset({key})
        for self.position, op in enumerate(self.graph._ops):
            self._lower_op(op)
        self.position = len(self.graph._ops)
        outputs = tuple(self.value(t) for t in self.graph._outputs)
        self.fx.output(outputs)
        aliases = tuple(self._aliases_of(t) for t in self.graph._outputs)
        module = GraphModule(self.root, self.fx, class_name=_identifier(self.graph.name or "main"))
        return Lowered(module, aliases, frozenset(self.writes))

    # --- what rules use ---

    def call(self, function: Callable, *args: Any, **kwargs: Any) -> Node:
        return self.fx.call_function(function, args, kwargs)

    def collective(self, op: Op, x: Node) -> Node:
        """A call of the collective with everything but the tensor filled in."""
        do, group = self.collectives, op.group
        if op.kind == "all_reduce":
            reduction = op.reduction

            def run(x: torch.Tensor) -> torch.Tensor:
                return do.all_reduce(x, reduction, group)

        elif op.kind == "all_gather":
            axis, new_axis = op.axis, op.new_axis

            def run(x: torch.Tensor) -> torch.Tensor:
                return do.all_gather(x, group, axis, new_axis)

        else:
            reduction, members = op.reduction, group.group_size

            def run(x: torch.Tensor) -> torch.Tensor:
                return do.reduce_scatter(x, reduction, group, members)

        run.__name__ = op.kind
        return self.call(run, x)

    # --- tensors to nodes ---

    def value(self, tensor: Tensor) -> Node:
        """The node of what `tensor` holds now."""
        if tensor in self.cells:
            return self.call(cells.read, self.cells[tensor][0])
        if tensor not in self.values:
            self.values[tensor] = self._first_value(tensor)
            self.aliases[tensor] = frozenset()
        return self.values[tensor]

    def _first_value(self, tensor: Tensor) -> Node:
        if isinstance(tensor, Constant):
            return self._attribute("constant", self._constant(tensor))
        if isinstance(tensor, Variable):
            raise ValueError(
                f"{tensor.name} is a remote variable: load it with ops.remote_load before use"
            )
        raise ValueError(f"{tensor.name} is used before it is made")

    def _constant(self, tensor: Constant) -> torch.Tensor:
        from popxl.backend.arrays import to_torch

        host = to_torch(tensor._data).to(self.device)
        return host.reshape((1,) * self.lead + tensor.shape)

    def _attribute(self, prefix: str, value: Any) -> Node:
        """A node for a tensor or module kept with the graph."""
        name = f"{prefix}_{len(self.root._buffers) + len(self.root._modules)}"
        if isinstance(value, torch.Tensor):
            self.root.register_buffer(name, value)
        else:
            self.root.add_module(name, value)
        return self.fx.get_attr(name)

    def _call_module(self, prefix: str, module: torch.nn.Module, args: list[Node]) -> Node:
        name = f"{_identifier(prefix)}_{len(self.root._buffers) + len(self.root._modules)}"
        self.root.add_module(name, module)
        return self.fx.call_module(name, tuple(args))

    def _aliases_of(self, tensor: Tensor) -> frozenset[Key]:
        if tensor in self.cells:
            return frozenset({self.cells[tensor][1]})
        return self.aliases.get(tensor, frozenset())

    # --- ops ---

    def _lower_op(self, op: Op) -> None:
        special = getattr(self, f"_lower_{op.kind}", None)
        if special is not None:
            special(op)
        elif op.modifies:
            self._lower_inplace(op)
        else:
            self._define(op, self._apply_rule(op))

    def _apply_rule(self, op: Op) -> Any:
        """The node (or nodes) of a plain op. Wide unsigned integers are computed with as int64."""
        args = [self.value(t) for t in op.inputs]
        if op.kind in VIEWS - {"cast"}:
            return RULES[op.kind](self, op, args)
        args = [
            self.call(kernels.cast, a, torch.int64) if _is_wide_unsigned(t) else a
            for a, t in zip(args, op.inputs, strict=True)
        ]
        made = RULES[op.kind](self, op, args)
        outputs = op.outputs or op.inputs[:1]
        nodes = made if isinstance(made, list) else [made]
        nodes = [
            self.call(kernels.cast, n, t.dtype.as_torch()) if _is_wide_unsigned(t) else n
            for n, t in zip(nodes, outputs, strict=True)
        ]
        return nodes if isinstance(made, list) else nodes[0]

    def _define(self, op: Op, made: Any) -> None:
        aliases = (
            frozenset().union(*(self._aliases_of(t) for t in op.inputs))
            if op.kind in VIEWS
            else frozenset()
        )
        for tensor, node in zip(
            op.outputs, made if isinstance(made, list) else [made], strict=True
        ):
            self.values[tensor], self.aliases[tensor] = node, aliases
        if op.attributes.get("alias"):
            self._link(op.inputs[0], op.outputs[0])

    def _lower_inplace(self, op: Op) -> None:
        target = op.inputs[0]
        if op.kind == "dynamic_update" and target in self.cells and not _is_wide_unsigned(target):
            args = [self.value(t) for t in op.inputs[1:]]
            cell, key = self.cells[target]
            args = self._protect({key}, list(op.inputs[1:]), args)
            self.call(kernels.update_cell, cell, *args, self.lead, **region(op))
            self._written(target)
        else:
            self._assign(target, self._apply_rule(op))

    def _assign(self, tensor: Tensor, node: Node, aliases: frozenset[Key] = frozenset()) -> None:
        """Let `tensor` stand for a new value, in its cell where it has one."""
        if tensor in self.cells:
            cell, key = self.cells[tensor]
            self._protect({key})
            self.call(cells.write, cell, node)
        else:
            self.values[tensor], self.aliases[tensor] = node, aliases
        self._written(tensor)

    # --- tensors that share their elements (reshape_, transpose_) ---

    def _link(self, a: Tensor, b: Tensor) -> None:
        self.links.setdefault(a, []).append(b)
        self.links.setdefault(b, []).append(a)

    def _written(self, tensor: Tensor, seen: frozenset[Tensor] = frozenset()) -> None:
        """Carry a write over to the tensors that share their elements with it."""
        for other in self.links.get(tensor, ()):
            if other not in seen:
                self._carry(tensor, other)
                self._written(other, seen | {tensor})

    def _carry(self, source: Tensor, target: Tensor) -> None:
        op = next(
            op
            for op in self.graph._ops
            if op.attributes.get("alias") and {op.inputs[0], op.outputs[0]} == {source, target}
        )
        value = self.value(source)
        if op.kind == "reshape":
            value = self.call(kernels.reshape, value, self.lead, target.shape)
        else:
            order = op.permutation
            back = tuple(order.index(i) for i in range(len(order)))
            forward = source is op.inputs[0]
            value = self.call(kernels.permute, value, self.lead, order if forward else back)
        if target in self.cells:
            self.call(cells.write, self.cells[target][0], value)
        else:
            self.values[target], self.aliases[target] = value, self._aliases_of(source)

    # --- memory that lasts ---

    def _protect(
        self,
        written: set[Key],
        operands: list[Tensor] | None = None,
        nodes: list[Node] | None = None,
    ) -> list[Node]:
        """Before `written` is written to: copy the values that share its memory and are used later.

        Operands of the writing op itself are copied too; returns their nodes.
        """
        self.writes |= written & self._outside()
        for tensor in list(self.values):
            if self.aliases[tensor] & written and self.uses.last(tensor) > self.position:
                self.values[tensor] = self.call(kernels.clone, self.values[tensor])
                self.aliases[tensor] = frozenset()
        return [
            self.call(kernels.clone, node) if self._aliases_of(tensor) & written else node
            for tensor, node in zip(operands or [], nodes or [], strict=True)
        ]

    def _outside(self) -> set[Key]:
        """Keys that mean something to the caller: by-reference inputs and remote buffers."""
        buffers: set[Key] = {("remote", b.remote_buffer_id) for b in self.program.around.remote}
        return buffers | {("in", i) for i in self.by_ref}

    # --- remote buffers and streams ---

    def _offset(self, op: Op, first: int) -> Any:
        return op.offset if op.offset is not None else self.value(op.inputs[first])

    def _lower_remote_load(self, op: Op) -> None:
        store = self.program.around.remote[op.buffer]
        key: Key = ("remote", op.buffer.remote_buffer_id)
        loaded = op.outputs[0]
        if op in self.in_place_slots:
            self.cells[loaded] = (self.call(store.cell, self._offset(op, 0)), key)
        else:
            self.values[loaded] = self.call(store.load, self._offset(op, 0))
            self.aliases[loaded] = frozenset({key})

    def _lower_remote_load_(self, op: Op) -> None:
        store = self.program.around.remote[op.buffer]
        key: Key = ("remote", op.buffer.remote_buffer_id)
        self._assign(op.inputs[0], self.call(store.load, self._offset(op, 1)), frozenset({key}))

    def _lower_remote_store(self, op: Op) -> None:
        stored = op.inputs[0]
        key: Key = ("remote", op.buffer.remote_buffer_id)
        if self.cells.get(stored, (None, None))[1] == key:
            return  # the slot itself was updated
        (value,) = self._protect({key}, [stored], [self.value(stored)])
        self.call(self.program.around.remote[op.buffer].store, value, self._offset(op, 1))

    def _lower_host_load(self, op: Op) -> None:
        self._define(op, self.call(self.program.around.load(op.stream)))

    def _lower_host_store(self, op: Op) -> None:
        value = self.value(op.inputs[0])
        if self._aliases_of(op.inputs[0]):
            value = self.call(kernels.clone, value)
        self.call(self.program.around.store(op.stream), value)

    # --- calls of graphs ---

    def _lower_call(self, op: Op) -> None:
        lowered = self.program.lower(op.graphs[0], frozenset(op.modifies))
        replaced = self.program.around.composites.find(op, self.mesh)
        module = lowered.module if replaced is None else replaced
        self._run_graphs(op, module, [(lowered, list(range(len(op.inputs))))])

    def _lower_repeat(self, op: Op) -> None:
        lowered = self.program.lower(op.graphs[0], frozenset(op.modifies))
        carried = [bool(a & lowered.writes) for a in lowered.aliases]
        module = Repeat(lowered.module, op.count, carried)
        self._run_graphs(op, module, [(lowered, list(range(len(op.inputs))))])

    def _lower_conditional(self, op: Op) -> None:
        split = 1 + len(op.graphs[0]._inputs)
        ranges = [list(range(1, split)), list(range(split, len(op.inputs)))]
        branches = []
        for graph, indices in zip(op.graphs, ranges, strict=True):
            by_ref = frozenset(i - indices[0] for i in op.modifies if i in indices)
            branches.append((self.program.lower(graph, by_ref), indices))
        module = Conditional(branches[0][0].module, branches[1][0].module, split - 1)
        self._run_graphs(op, module, branches)

    def _run_graphs(
        self, op: Op, module: torch.nn.Module, called: list[tuple[Lowered, list[int]]]
    ) -> None:
        """Call `module`; pass cells for inputs by reference and keep the books on memory."""
        borrowed = {
            i: self.call(cells.make_cell, self.value(op.inputs[i]))
            for i in op.modifies
            if op.inputs[i] not in self.cells
        }
        written = {
            self._key(op, i, key) for low, own in called for i, key in _seen(low.writes, own)
        }
        args = [
            borrowed.get(i)
            or (self.cells[t][0] if i in op.modifies and t in self.cells else self.value(t))
            for i, t in enumerate(op.inputs)
        ]
        by_value = [i for i in range(len(args)) if i not in op.modifies]
        safe = self._protect(written, [op.inputs[i] for i in by_value], [args[i] for i in by_value])
        for i, node in zip(by_value, safe, strict=True):
            args[i] = node
        result = self._call_module(f"{op.kind}_{op.graphs[0].name}", module, args)
        for number, tensor in enumerate(op.outputs):
            self.values[tensor] = self.call(_item, result, number)
            self.aliases[tensor] = frozenset().union(
                *(
                    self._aliases_of(op.inputs[i]) if i is not None else {key}
                    for low, own in called
                    for i, key in _seen(low.aliases[number], own)
                )
            )
        for i in op.modifies:
            if i in borrowed:
                self.values[op.inputs[i]] = self.call(cells.read, borrowed[i])
                self.aliases[op.inputs[i]] = frozenset()
            self._written(op.inputs[i])

    def _key(self, op: Op, index: int | None, key: Key) -> Key:
        """A callee's key in this graph's terms."""
        if index is None:
            return key
        cell = self.cells.get(op.inputs[index])
        return cell[1] if cell else ("local", index)


def _seen(keys: frozenset[Key], own: list[int]) -> list[tuple[int | None, Key]]:
    """A callee's keys with the index of the op's input that each stands for (None: a buffer)."""
    return [(own[key[1]] if key[0] == "in" else None, key) for key in keys]


def _item(results: tuple, index: int) -> torch.Tensor:
    return results[index]


def _is_wide_unsigned(t: Tensor) -> bool:
    return t.dtype.name in ("uint16", "uint32", "uint64")


def _identifier(name: str) -> str:
    cleaned = "".join(c if c.isalnum() else "_" for c in name)
    return cleaned if cleaned[:1].isalpha() else f"t_{cleaned}"


__all__ = ["Lowered", "Lowering", "Surroundings", "buffers_of"]
