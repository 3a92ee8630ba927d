"""How ops that call graphs are lowered: calls, loops, branches, and what they do to memory."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from popxl.graph import Graph, Op
from popxl.tensor import Constant

from popxl_torch.analysis.aliasing import HOST, Key
from popxl_torch.analysis.reach import is_steady, only_loads, reaches_outside
from popxl_torch.fusion.declared import found_for
from popxl_torch.lowering.control import Conditional, Repeat
from popxl_torch.memory import cells

if TYPE_CHECKING:
    from popxl_torch.lowering.graphs import GraphLowering

SMALL = 1 << 12
"""Elements that cost less to copy than to ask whether they have moved."""


@dataclass(frozen=True)
class Lowered:
    """A graph as a callable, and what it does to memory that is not its own.

    Attributes:
        module: takes an argument an input, a `Cell` where that is by reference; returns a tuple.
        shares: for each output, the memory it may lie in.
        writes: the memory that is written to.
    """

    module: torch.nn.Module
    shares: tuple[frozenset[Key], ...]
    writes: frozenset[Key]


@dataclass(frozen=True)
class Callee:
    """A lowered graph at an op that calls it: its input j is the op's input `first + j`."""

    lowered: Lowered
    first: int

    def written(self) -> set[int]:
        """The op's inputs that are written to."""
        return {self.first + j for kind, j in self.lowered.writes if kind == "in"}

    def shared(self, output: int) -> set[int]:
        """The op's inputs whose memory an output may lie in."""
        return {self.first + j for kind, j in self.lowered.shares[output] if kind == "in"}


def repeated(body: Lowered, by_ref: frozenset[int]) -> tuple[Lowered, list[bool]]:
    """A loop of `body` as one callable, and which outputs need a copy before they are fed."""
    carried = range(len(body.shares))
    writes = body.writes | {("in", i) for i in by_ref if i in carried}
    copied = [bool(shared & writes) for shared in body.shares]
    shares = [shared | {("in", i)} for i, shared in enumerate(body.shares)]
    for _ in carried:
        shares = [
            shared.union(*(shares[i] for kind, i in shared if kind == "in" and i in carried))
            for shared in shares
        ]
    return Lowered(body.module, tuple(shares), writes), copied


def call(g: GraphLowering, op: Op) -> None:
    by_ref = frozenset(op.modifies) | {loan.index for loan in g.loans if loan.call is op}
    lowered = g.program.lower(op.graphs[0], by_ref)
    around, module = g.around, lowered.module
    if around.declared:
        module = found_for(op, around.mesh, around.back_end, module) or module
    lasting = _lasting(g, op, lowered, by_ref)
    # Elsewhere only a callee that loads its own weights: a recording may copy what it is given.
    if g.graph is g.graph.main_graph or not (lasting or is_steady(g.graph)):
        module = _recorded(g, op.graphs[0], module, lasting=lasting)
    _run_graphs(g, op, module, [Callee(lowered, 0)], sorted(by_ref))


def repeat(g: GraphLowering, op: Op) -> None:
    body = g.program.lower(op.graphs[0], frozenset(op.modifies))
    loop, copied = repeated(body, frozenset(op.modifies))
    module: torch.nn.Module = Repeat(body.module, op.count, copied)
    if not is_steady(g.graph):  # else a larger part is recorded
        constants = (i for i, t in enumerate(op.inputs) if isinstance(t, Constant))
        lasting = _lasting(g, op, loop, frozenset(op.modifies))
        module = _recorded(g, op.graphs[0], module, frozenset(constants), lasting)
    _run_graphs(g, op, module, [Callee(loop, 0)])


def conditional(g: GraphLowering, op: Op) -> None:
    starts = (1, 1 + len(op.graphs[0]._inputs))
    then_branch, else_branch = (
        g.program.lower(
            graph,
            frozenset(i - start for i in op.modifies if start <= i < start + len(graph._inputs)),
        )
        for graph, start in zip(op.graphs, starts, strict=True)
    )
    outside = next(filter(None, map(reaches_outside, op.graphs)), "")
    then_module, else_module = (
        _recorded(g, graph, branch.module)
        for graph, branch in zip(op.graphs, (then_branch, else_branch), strict=True)
    )
    module = Conditional(then_module, else_module, starts[1] - 1, g.lead, outside)
    callees = [Callee(then_branch, starts[0]), Callee(else_branch, starts[1])]
    _run_graphs(g, op, module, callees)


def _lasting(g: GraphLowering, op: Op, callee: Lowered, by_ref: frozenset[int]) -> frozenset[int]:
    """The inputs by value that lie in memory which stays, and is not written to meanwhile.

    Whether what a graph is given stays is not known here: a small tensor of it does not count,
    which is copied at once, where a recording would be made again for each place it lies at.
    """
    written = _written(g, op, [Callee(callee, 0)], by_ref)
    memory = {i: g.values.memory(t) for i, t in enumerate(op.inputs) if i not in by_ref}
    given = g.graph is not g.graph.main_graph
    return frozenset(
        i
        for i, keys in memory.items()
        if keys
        and HOST not in keys
        and not keys & written
        and not (given and op.inputs[i].nelms <= SMALL and all(key[0] == "in" for key in keys))
    )


def _written(g: GraphLowering, op: Op, callees: list[Callee], by_ref: Collection[int]) -> set[Key]:
    """The memory that lasts and that a call of graphs writes to."""
    touched = set[int]().union(*(callee.written() for callee in callees))
    written = {key for callee in callees for key in callee.lowered.writes if key[0] != "in"}
    cells = {i: g.values.cell(op.inputs[i]) for i in touched & set(by_ref)}
    return written | {cell[1] for cell in cells.values() if cell}


def _recorded(
    g: GraphLowering,
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
    return g.around.replays.of(module, constants, lasting)


def _run_graphs(
    g: GraphLowering,
    op: Op,
    module: torch.nn.Module,
    callees: list[Callee],
    by_ref: Sequence[int] | None = None,
) -> None:
    """Call `module`; pass cells for inputs by reference and keep the books on memory.

    Args:
        by_ref: these inputs; None for those that the program says.
    """
    values, inputs = g.values, op.inputs
    by_ref = op.modifies if by_ref is None else by_ref
    touched = set[int]().union(*(callee.written() for callee in callees))
    _check_distinct(g, op, touched, by_ref)
    own_cells = {i: cell for i in by_ref if (cell := values.cell(inputs[i]))}
    written = _written(g, op, callees, by_ref)
    read = [t for i, t in enumerate(inputs) if i not in own_cells]
    nodes = dict(zip(read, values.protect(written, read), strict=True))
    lent = {
        inputs[i]: g.call(cells.make_cell, nodes[inputs[i]]) for i in by_ref if i not in own_cells
    }
    args = [
        own_cells[i][0] if i in own_cells else lent[t] if i in by_ref else nodes[t]
        for i, t in enumerate(inputs)
    ]
    result = g.call_module(f"{op.kind}_{op.graphs[0].name}", module, args)
    for number, tensor in enumerate(op.outputs):
        memory = _shared_by_output(g, op, callees, number)
        values.bind(tensor, g.call(operator.getitem, result, number), memory)
    for t in dict.fromkeys(inputs[i] for i in sorted(touched) if i not in own_cells):
        # It may lie where it did: a loop may run no round, a branch may not be taken.
        values.assign(t, g.call(cells.read, lent[t]), values.memory(t))


def _shared_by_output(
    g: GraphLowering, op: Op, callees: list[Callee], number: int
) -> frozenset[Key]:
    lasting = {key for callee in callees for key in callee.lowered.shares[number] if key[0] != "in"}
    inputs = {op.inputs[i] for callee in callees for i in callee.shared(number)}
    return frozenset(lasting).union(*(g.values.memory(t) for t in inputs))


def _check_distinct(
    g: GraphLowering, op: Op, touched: Iterable[int], by_ref: Sequence[int]
) -> None:
    """Two inputs by reference must not share elements, where one of them is written to."""
    overlap, split = g.values.views.overlap, 1 + len(op.graphs[0]._inputs)
    for i, j in itertools.product(touched, by_ref):
        a, b = op.inputs[i], op.inputs[j]
        either_or = op.kind == "conditional" and (i < split) != (j < split) and a is b
        if i != j and not either_or and overlap(a, b):
            raise ValueError(
                f"{op.kind} of graph {op.graphs[0].name}: {a.name} and {b.name} share their "
                "elements and both go in by reference; pass one of them by value"
            )
