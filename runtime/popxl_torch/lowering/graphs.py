"""From a program's graphs to callables on torch tensors, one `torch.fx.GraphModule` a graph.

`rules.py` says what an op becomes; here is what concerns memory: ops that write in place, remote
buffers, streams and calls of other graphs. `values.py` keeps what tensors stand for meanwhile.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from popxl.graph import Graph, Op
from popxl.remote_buffer import RemoteBuffer
from popxl.streams import Stream
from popxl.tensor import Constant, Shard, Tensor, Variable
from torch.fx import GraphModule, Node

from popxl_torch.analysis.aliasing import HOST, Key, slots_updated_in_place
from popxl_torch.analysis.loans import loans
from popxl_torch.analysis.op_facts import facts_of, is_view
from popxl_torch.analysis.reach import is_steady, only_loads, reaches_outside
from popxl_torch.backends.back_end import BackEnd, first_of
from popxl_torch.backends.reference import functions as kernels
from popxl_torch.backends.reference.back_end import Reference
from popxl_torch.backends.specs import LinearSpec, NormSpec, PlaceSpec
from popxl_torch.collectives.across import AcrossProcesses
from popxl_torch.collectives.mesh import Mesh
from popxl_torch.collectives.within import Collectives
from popxl_torch.fusion.chains import Chain, chains, in_place
from popxl_torch.fusion.declared import found_for
from popxl_torch.fusion.groups import Fusion
from popxl_torch.fusion.products import Product, products
from popxl_torch.lowering import (
    attention,  # noqa: F401 - imported to register what is declared, and the rules
    decompression,  # noqa: F401
    norms,  # noqa: F401
    placement,
    rules_nn,  # noqa: F401
    rules_random,  # noqa: F401
    rules_updates,  # noqa: F401
)
from popxl_torch.lowering.callees import Callee, Lowered, repeated
from popxl_torch.lowering.control import Conditional, Repeat
from popxl_torch.lowering.linear import RunProduct
from popxl_torch.lowering.parts import Update
from popxl_torch.lowering.rules import region, rule_of
from popxl_torch.lowering.values import NOWHERE, Values
from popxl_torch.memory import cells
from popxl_torch.memory.arrays import to_torch
from popxl_torch.memory.cells import RemoteStore
from popxl_torch.replay.replay import Replays

SMALL = 1 << 12
"""Elements that cost less to copy than to ask whether they have moved."""


@dataclass(frozen=True)
class Surroundings:
    """What lowered graphs reach besides their inputs."""

    mesh: Mesh
    device: torch.device
    remote: dict[RemoteBuffer, RemoteStore]
    load: Callable[[Stream], Callable[[], torch.Tensor]]
    store: Callable[[Stream], Callable[[torch.Tensor], None]]
    back_end: BackEnd
    declared: bool  # whether graphs that were declared are computed as what they stand for
    replays: Replays
    collectives: Collectives | AcrossProcesses


class Lowering:
    """Lowers the graphs of one program, each once for each choice of inputs by reference."""

    def __init__(self, surroundings: Surroundings):
        self.around = surroundings
        self._done: dict[tuple[Graph, frozenset[int]], Lowered] = {}

    def lower(self, graph: Graph, by_ref: frozenset[int]) -> Lowered:
        """The callable of `graph`; `by_ref` has the indices of its inputs that are cells."""
        key = (graph, by_ref)
        if key not in self._done:
            self._done[key] = _GraphLowering(self, graph, list(graph._inputs), by_ref).run()
        return self._done[key]

    def lower_main(self, graph: Graph) -> tuple[Lowered, list[Variable]]:
        """The main graph; its arguments are the cells of the variables that are not remote."""
        kept = {t: v for t in graph.tensors if (v := _variable_in(t)) is not None}
        lowering = _GraphLowering(self, graph, list(kept), frozenset(range(len(kept))))
        return lowering.run(), list(kept.values())


class _GraphLowering:
    """The lowering of one graph; also the `Emitter` that rules work with."""

    def __init__(
        self, program: Lowering, graph: Graph, inputs: list[Tensor], by_ref: frozenset[int]
    ):
        self.program, self.graph, self.around = program, graph, program.around
        self.device, self.lead = self.around.device, self.around.mesh.lead
        self.collectives = self.around.collectives
        self.fx = torch.fx.Graph()
        self.root = torch.nn.Module()
        self.values = Values(graph, self.lead, self.call, self._constant)
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
                self._lower_group(group)
        outputs = self.graph._outputs
        self.fx.output(tuple(self.values.node(t) for t in outputs))
        module = GraphModule(self.root, self.fx, class_name=_identifier(self.graph.name or "main"))
        shares = tuple(self.values.memory(t) for t in outputs)
        return Lowered(module, shares, frozenset(self.values.writes))

    # --- what rules use ---

    def call(self, function: Callable, *args: Any, **kwargs: Any) -> Node:
        return self.fx.call_function(function, args, kwargs)

    def collective(self, op: Op, x: Node) -> Node:
        """A call of the collective."""
        return self.call(self._collective(op), x)

    def _collective(self, op: Op) -> Callable[[torch.Tensor], torch.Tensor]:
        """The collective with everything but the tensor filled in."""
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
        return run

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

    def _call_module(self, prefix: str, module: torch.nn.Module, args: list[Node]) -> Node:
        name = f"{_identifier(prefix)}_{len(self.root._modules)}"
        self.root.add_module(name, module)
        return self.fx.call_module(name, tuple(args))

    # --- ops ---

    def _lower_op(self, op: Op) -> None:
        facts_of(op)  # raises where the table lacks the kind
        special = getattr(self, f"_lower_{op.kind}", None)
        if special is not None:
            special(op)
        elif op.modifies:
            self._lower_inplace(op)
        elif not is_view(op):
            self._define(op, self._apply_rule(op), self._shared_by_rule(op))

    def _apply_rule(self, op: Op) -> list[Node]:
        """The nodes of a plain op. Wide unsigned integers are computed with as int64."""
        moved = min(facts_of(op).moved, len(op.inputs))
        args = [self.values.node(t) for t in op.inputs]
        for i in range(moved, len(args)):
            args[i] = self._computable(args[i], op.inputs[i])
        made = rule_of(op.kind)(self, op, self._placed(op, args))
        nodes = made if isinstance(made, list) else [made]
        if moved:
            return nodes
        outputs = op.outputs or op.inputs[:1]
        return [self._stored(n, t) for n, t in zip(nodes, outputs, strict=True)]

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
        return [self.call(_item, both, number) for number in range(len(args))]

    def _computable(self, node: Node, tensor: Tensor) -> Node:
        wide = _is_wide_unsigned(tensor)
        return self.call(kernels.cast, node, torch.int64) if wide else node

    def _stored(self, node: Node, tensor: Tensor) -> Node:
        wide = _is_wide_unsigned(tensor)
        return self.call(kernels.cast, node, tensor.dtype.as_torch()) if wide else node

    def _shared_by_rule(self, op: Op) -> frozenset[Key]:
        """The memory that the results of a plain op may lie in."""
        if not facts_of(op).shares:
            return NOWHERE
        return NOWHERE.union(*(self.values.memory(t) for t in op.inputs))

    def _define(self, op: Op, nodes: list[Node], memory: frozenset[Key]) -> None:
        for tensor, node in zip(op.outputs, nodes, strict=True):
            self.values.bind(tensor, node, memory)

    def _lower_inplace(self, op: Op) -> None:
        chain = in_place(op, self.lead) if self.around.back_end.chains else None
        if chain is not None:
            self.values.assign(op.inputs[0], self._chained(chain))
            return
        self.values.assign(op.inputs[0], self._apply_rule(op)[0], self._shared_by_rule(op))

    def _lower_dynamic_update(self, op: Op) -> None:
        target = op.inputs[0]
        update = Update(self.around.back_end, PlaceSpec(self.lead, **region(op)))
        if _is_wide_unsigned(target):
            made = self._apply_rule(op)[0]
        elif op.modifies and (cell := self.values.cell(target)):
            node, key = cell
            self.call(update.in_cell, node, *self.values.protect({key}, op.inputs[1:]))
            return
        else:
            made = self.call(update.of_copy, *(self.values.node(t) for t in op.inputs))
        if op.modifies:
            self.values.assign(target, made)
        else:
            self.values.bind(op.outputs[0], made)

    # --- remote buffers and streams ---

    def _remote(self, op: Op, first: int = 0) -> tuple[RemoteStore, Key, Any]:
        """The buffer of an op, its memory's key, and the offset, a number or input `first`."""
        offset = op.offset if op.offset is not None else self.values.node(op.inputs[first])
        return self.around.remote[op.buffer], ("remote", op.buffer.remote_buffer_id), offset

    def _lower_remote_load(self, op: Op) -> None:
        store, key, offset = self._remote(op)
        if op in self.in_place_slots:
            self.values.bind_cell(op.outputs[0], self.call(store.open, offset), key)
        else:
            self.values.bind(op.outputs[0], self.call(store.load, offset), frozenset({key}))

    def _lower_remote_load_(self, op: Op) -> None:
        store, key, offset = self._remote(op, 1)
        self.values.assign(op.inputs[0], self.call(store.load, offset), frozenset({key}))

    def _lower_remote_store(self, op: Op) -> None:
        store, key, offset = self._remote(op, 1)
        cell = self.values.cell(self.lent_by_store.get(op, op.inputs[0]))
        if cell and cell[1] == key:
            self.call(store.close, cell[0], offset)
        else:
            (value,) = self.values.protect({key}, op.inputs[:1])
            self.call(store.store, value, offset)

    def _lower_host_load(self, op: Op) -> None:
        self._define(op, [self.call(self.around.load(op.stream))], frozenset({HOST}))

    def _lower_host_store(self, op: Op) -> None:
        value = self.values.node(op.inputs[0])
        if self.values.memory(op.inputs[0]):
            value = self.call(kernels.clone, value)
        self.call(self.around.store(op.stream), value)

    # --- products ---

    def _groups_of_kernels(self) -> dict[Op, Product | Chain]:
        """What kernels do at once, by each of its ops."""
        back_end = self.around.back_end
        mesh = self.around.mesh if isinstance(self.collectives, Collectives) else None
        fusion = Fusion(self.graph, {loan.call for loan in self.loans})
        found: list[Product | Chain] = []
        if back_end.products:
            found += products(self.graph, fusion, mesh)
        if back_end.chains:
            found += chains(self.graph, fusion, self.lead)
        return {op: group for group in found for op in group.ops}

    def _lower_group(self, group: Product | Chain) -> None:
        if isinstance(group, Chain):
            self._lower_chain(group)
        else:
            self._lower_product(group)

    def _lower_chain(self, chain: Chain) -> None:
        self.values.bind(chain.output, self._chained(chain))

    def _chained(self, chain: Chain) -> Node:
        spec = chain.spec(self.lead)
        run = self.around.back_end.chain(spec) or Reference().chain(spec)
        return self.call(run, *(self.values.node(t) for t in chain.inputs))

    def _lower_layer_norm(self, op: Op) -> None:
        spec, back_ends = NormSpec(self.lead, op.eps), (self.around.back_end, Reference())
        run = first_of(op.kind, *(functools.partial(b.norm, spec) for b in back_ends))
        self._define(op, [self.call(run, *map(self.values.node, op.inputs))], NOWHERE)

    def _lower_concat(self, op: Op) -> None:
        if is_view(op):
            return
        out, nodes = op.outputs[0], [self.values.node(t) for t in op.inputs]
        axis, dtype = op.axis - out.rank, out.dtype.as_torch()
        join = self.around.back_end.concat(self.lead, axis, dtype, out.rank)
        made = rule_of(op.kind)(self, op, nodes) if join is None else self.call(join, *nodes)
        self._define(op, [made], NOWHERE)

    def _lower_matmul(self, op: Op) -> None:
        x, w = op.inputs
        if not (x.rank == w.rank >= 3 and x.dtype.is_floating_point):
            self._define(op, self._apply_rule(op), NOWHERE)
            return
        spec = LinearSpec(self.lead, op.outputs[0].dtype.as_torch())
        back_ends = self.around.back_end, Reference()
        run = first_of(op.kind, *(functools.partial(b.batched, spec) for b in back_ends))
        self._define(op, [self.call(run, *map(self.values.node, op.inputs))], NOWHERE)

    def _lower_product(self, product: Product) -> None:
        reduced = None if product.reduced is None else self._collective(product.reduced)
        run = RunProduct(product, self.lead, self.around.back_end, reduced)
        nodes = [self.values.node(t) for t in product.inputs]
        self.values.bind(product.output, self.call(run, *nodes))

    # --- calls of graphs ---

    def _lower_call(self, op: Op) -> None:
        by_ref = frozenset(op.modifies) | {loan.index for loan in self.loans if loan.call is op}
        lowered = self.program.lower(op.graphs[0], by_ref)
        around, module = self.around, lowered.module
        if around.declared:
            module = found_for(op, around.mesh, around.back_end, module) or module
        lasting = self._lasting(op, lowered, by_ref)
        # Elsewhere only a callee that loads its own weights: a recording may copy what it is given.
        if self.graph is self.graph.main_graph or not (lasting or is_steady(self.graph)):
            module = self._recorded(op.graphs[0], module, lasting=lasting)
        self._run_graphs(op, module, [Callee(lowered, 0)], sorted(by_ref))

    def _lower_repeat(self, op: Op) -> None:
        body = self.program.lower(op.graphs[0], frozenset(op.modifies))
        loop, copied = repeated(body, frozenset(op.modifies))
        module: torch.nn.Module = Repeat(body.module, op.count, copied)
        if not is_steady(self.graph):  # else a larger part is recorded
            constants = (i for i, t in enumerate(op.inputs) if isinstance(t, Constant))
            lasting = self._lasting(op, loop, frozenset(op.modifies))
            module = self._recorded(op.graphs[0], module, frozenset(constants), lasting)
        self._run_graphs(op, module, [Callee(loop, 0)])

    def _lower_conditional(self, op: Op) -> None:
        starts = (1, 1 + len(op.graphs[0]._inputs))
        then_branch, else_branch = (
            self.program.lower(
                graph,
                frozenset(
                    i - start for i in op.modifies if start <= i < start + len(graph._inputs)
                ),
            )
            for graph, start in zip(op.graphs, starts, strict=True)
        )
        outside = next(filter(None, map(reaches_outside, op.graphs)), "")
        then_module, else_module = (
            self._recorded(graph, branch.module)
            for graph, branch in zip(op.graphs, (then_branch, else_branch), strict=True)
        )
        module = Conditional(then_module, else_module, starts[1] - 1, self.lead, outside)
        callees = [Callee(then_branch, starts[0]), Callee(else_branch, starts[1])]
        self._run_graphs(op, module, callees)

    def _lasting(self, op: Op, callee: Lowered, by_ref: frozenset[int]) -> frozenset[int]:
        """The inputs by value that lie in memory which stays, and is not written to meanwhile.

        Whether what a graph is given stays is not known here: a small tensor of it does not count,
        which is copied at once, where a recording would be made again for each place it lies at.
        """
        written = self._written(op, [Callee(callee, 0)], by_ref)
        memory = {i: self.values.memory(t) for i, t in enumerate(op.inputs) if i not in by_ref}
        given = self.graph is not self.graph.main_graph
        return frozenset(
            i
            for i, keys in memory.items()
            if keys
            and HOST not in keys
            and not keys & written
            and not (given and op.inputs[i].nelms <= SMALL and all(key[0] == "in" for key in keys))
        )

    def _written(self, op: Op, callees: list[Callee], by_ref: Collection[int]) -> set[Key]:
        """The memory that lasts and that a call of graphs writes to."""
        touched = set[int]().union(*(callee.written() for callee in callees))
        written = {key for callee in callees for key in callee.lowered.writes if key[0] != "in"}
        cells = {i: self.values.cell(op.inputs[i]) for i in touched & set(by_ref)}
        return written | {cell[1] for cell in cells.values() if cell}

    def _recorded(
        self,
        graph: Graph,
        module: torch.nn.Module,
        constants: frozenset[int] = frozenset(),
        lasting: frozenset[int] = frozenset(),
    ) -> torch.nn.Module:
        """`module`, which runs the lowered `graph`, recorded where that is of use.

        Args:
            constants: its inputs that are the same in every run.
            lasting: those that may be read where they lie.
        """
        if not is_steady(graph) or only_loads(graph):
            return module
        return self.around.replays.of(module, constants, lasting)

    def _run_graphs(
        self,
        op: Op,
        module: torch.nn.Module,
        callees: list[Callee],
        by_ref: Sequence[int] | None = None,
    ) -> None:
        """Call `module`; pass cells for inputs by reference and keep the books on memory.

        Args:
            by_ref: these inputs; None for those that the program says.
        """
        values, inputs = self.values, op.inputs
        by_ref = op.modifies if by_ref is None else by_ref
        touched = set[int]().union(*(callee.written() for callee in callees))
        self._check_distinct(op, touched, by_ref)
        own_cells = {i: cell for i in by_ref if (cell := values.cell(inputs[i]))}
        written = self._written(op, callees, by_ref)
        read = [t for i, t in enumerate(inputs) if i not in own_cells]
        nodes = dict(zip(read, values.protect(written, read), strict=True))
        lent = {
            inputs[i]: self.call(cells.make_cell, nodes[inputs[i]])
            for i in by_ref
            if i not in own_cells
        }
        args = [
            own_cells[i][0] if i in own_cells else lent[t] if i in by_ref else nodes[t]
            for i, t in enumerate(inputs)
        ]
        result = self._call_module(f"{op.kind}_{op.graphs[0].name}", module, args)
        for number, tensor in enumerate(op.outputs):
            memory = self._shared_by_output(op, callees, number)
            values.bind(tensor, self.call(_item, result, number), memory)
        for t in dict.fromkeys(inputs[i] for i in sorted(touched) if i not in own_cells):
            # It may lie where it did: a loop may run no round, a branch may not be taken.
            values.assign(t, self.call(cells.read, lent[t]), values.memory(t))

    def _shared_by_output(self, op: Op, callees: list[Callee], number: int) -> frozenset[Key]:
        lasting = {
            key for callee in callees for key in callee.lowered.shares[number] if key[0] != "in"
        }
        inputs = {op.inputs[i] for callee in callees for i in callee.shared(number)}
        return frozenset(lasting).union(*(self.values.memory(t) for t in inputs))

    def _check_distinct(self, op: Op, touched: Iterable[int], by_ref: Sequence[int]) -> None:
        """Two inputs by reference must not share elements, where one of them is written to."""
        overlap, split = self.values.views.overlap, 1 + len(op.graphs[0]._inputs)
        for i, j in itertools.product(touched, by_ref):
            a, b = op.inputs[i], op.inputs[j]
            either_or = op.kind == "conditional" and (i < split) != (j < split) and a is b
            if i != j and not either_or and overlap(a, b):
                raise ValueError(
                    f"{op.kind} of graph {op.graphs[0].name}: {a.name} and {b.name} share their "
                    "elements and both go in by reference; pass one of them by value"
                )


def _item(results: tuple, index: int) -> torch.Tensor:
    return results[index]


def _variable_in(t: Tensor) -> Variable | None:
    """The variable whose cell a tensor of the main graph stands for, if any."""
    if isinstance(t, Shard):
        return t._of
    whole = isinstance(t, Variable) and t._remote is None and t._sharding is None
    return t if whole else None  # type: ignore[return-value]


def _is_wide_unsigned(t: Tensor) -> bool:
    return t.dtype.name in ("uint16", "uint32", "uint64")


def _identifier(name: str) -> str:
    cleaned = "".join(c if c.isalnum() else "_" for c in name)
    return cleaned if cleaned[:1].isalpha() else f"t_{cleaned}"
