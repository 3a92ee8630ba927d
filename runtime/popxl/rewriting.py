"""Graphs that are built already, changed: repeated as wholes, given one more input.

`popxl_addons` offers what is here under PopXL's names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from popxl.context import get_current_graph
from popxl.graph import Graph, Op
from popxl.ops import repeat
from popxl.tensor import Constant, Tensor, constant, graph_input


def repeat_graph(graph: Graph, repeat_count: int) -> Graph:
    """Move the ops of `graph` to a new graph, which `graph` then repeats; for 1 it stays as it is.

    What the ops use and do not make (variables, inputs of `graph`) goes in by reference.

    Returns:
        The new graph; `graph` itself for a count of 1 or less.

    Raises:
        ValueError: where `graph` has outputs, which its ops would make no more.
    """
    if repeat_count <= 1:
        return graph
    if graph.outputs:
        raise ValueError(f"repeat_graph: graph {graph.name} has outputs, so it cannot be repeated")
    return repeat_ops(graph, graph._ops, repeat_count, "repeat_graph")


def repeat_ops(graph: Graph, ops: Iterable[Op], repeat_count: int, name: str) -> Graph:
    """Move some ops of `graph` to a new graph, in this order, and repeat it at the end of `graph`.

    What the ops use and do not make goes in by reference; what they make is not there afterwards.

    Returns:
        The new graph.
    """
    ops = list(ops)
    body = graph.ir.create_empty_graph(name)
    given: dict[Tensor, Tensor] = {}
    moved: dict[Tensor, Tensor] = {}
    with body:
        for op in ops:
            inputs = tuple(_inside(t, moved, given) for t in op.inputs)
            moved |= {t: Tensor._make(body, t.spec, t.name) for t in op.outputs}
            outputs = tuple(moved[t] for t in op.outputs)
            body._ops.append(Op(op.kind, inputs, outputs, op.attributes, op.graphs, op.modifies))
    gone = set(ops)
    graph._ops[:] = [op for op in graph._ops if op not in gone]
    with graph:
        repeat(body, repeat_count, inputs_dict=given)
    return body


def _inside(t: Tensor, moved: dict[Tensor, Tensor], given: dict[Tensor, Tensor]) -> Tensor:
    """What stands for `t` in the new graph: a constant, an input, or what an op there made."""
    if t not in moved:
        if isinstance(t, Constant):
            moved[t] = constant(t._data, t.dtype, t.name)
        else:
            moved[t] = graph_input(t.shape, t.dtype, t.name, True, t.meta_shape)
            given[moved[t]] = t
    return moved[t]


def is_subgraph(parent: Graph, subgraph: Graph) -> bool:
    """Whether `subgraph` is `parent`, or one that it calls, directly or through others."""
    return parent is subgraph or any(is_subgraph(g, subgraph) for g in parent.called_graphs)


def route_tensor_into_graph(
    tensor: Tensor, graph: Graph | None = None, modified: bool = False
) -> Tensor:
    """What stands for `tensor` in a graph that the tensor's graph calls, however deep.

    Every graph on the way gets an input for it, and every call of these graphs passes it on; a call
    that passes it on already stays as it is.

    Args:
        graph: the current graph where None.
        modified: what the graph writes to it is written to `tensor`.

    Raises:
        ValueError: where the tensor's graph does not call `graph`.
    """
    graph = graph or get_current_graph()
    if not is_subgraph(tensor._graph, graph):
        raise ValueError(
            f"route_tensor_into_graph: {tensor.name} is not in the graph "
            f"{graph.name or 'main'}, nor in one that calls it"
        )
    return _stand_in(graph, tensor, modified, {tensor._graph: tensor})


def _stand_in(
    graph: Graph,
    tensor: Tensor,
    modified: bool,
    known: dict[Graph, Tensor],
) -> Tensor:
    if graph in known:
        return known[graph]
    calls = [
        (_stand_in(caller, tensor, modified, known), op, branch)
        for caller in _graphs_below(tensor._graph)
        for op in caller._ops
        for branch, called in enumerate(op.graphs)
        if called is graph
    ]
    for given, op, branch in calls:
        if given in _passed(op, branch):
            known[graph] = graph._inputs[_passed(op, branch).index(given)]
            return known[graph]
    with graph:
        made = graph_input(tensor.shape, tensor.dtype, tensor.name, modified)
    for given, op, branch in calls:
        _pass_on(given, op, branch, modified)
    known[graph] = made
    return made


def _graphs_below(graph: Graph) -> Iterator[Graph]:
    """`graph` and all that it calls, each once."""
    found: dict[Graph, None] = {graph: None}
    queue = [graph]
    while queue:
        new = [g for g in queue.pop().called_graphs if g not in found]
        found.update(dict.fromkeys(new))
        queue += new
    return iter(found)


def _start(op: Op, branch: int) -> int:
    """The input of the op that is the first of the graph that it calls as `branch`."""
    return 0 if op.kind != "conditional" else 1 + branch * len(op.graphs[0]._inputs)


def _passed(op: Op, branch: int) -> tuple[Tensor, ...]:
    """What the op passes to the graph that it calls as `branch`."""
    start = _start(op, branch)
    return op.inputs[start : start + len(op.graphs[branch]._inputs)]


def _pass_on(given: Tensor, op: Op, branch: int, modified: bool) -> None:
    """Let the op pass one more tensor, to the graph's last input, which was just made."""
    at = _start(op, branch) + len(op.graphs[branch]._inputs) - 1
    op.inputs = (*op.inputs[:at], given, *op.inputs[at:])
    moved = tuple(i + (i >= at) for i in op.modifies)
    op.modifies = tuple(sorted((*moved, at))) if modified else moved
