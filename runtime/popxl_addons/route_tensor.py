"""A tensor of a calling graph, used in a graph that is called: the inputs on the way are added."""

from __future__ import annotations

from collections.abc import Iterator

import popxl
from popxl.graph import Op


def is_subgraph(parent: popxl.Graph, subgraph: popxl.Graph) -> bool:
    """Whether `subgraph` is `parent`, or one that it calls, directly or through others."""
    return parent is subgraph or any(is_subgraph(g, subgraph) for g in parent.called_graphs)


def route_tensor_into_graph(
    tensor: popxl.Tensor, graph: popxl.Graph | None = None, modified: bool = False
) -> popxl.Tensor:
    """What stands for `tensor` in a graph that the tensor's graph calls, however deep.

    Every graph on the way gets an input for it, and every call of these graphs passes it on; a call
    that passes it on already stays as it is.

    Args:
        graph: the current graph where None.
        modified: what the graph writes to it is written to `tensor`.

    Raises:
        ValueError: where the tensor's graph does not call `graph`.
    """
    graph = graph or popxl.gcg()
    if not is_subgraph(tensor._graph, graph):
        raise ValueError(
            f"route_tensor_into_graph: graph {tensor._graph.name or 'main'} of {tensor.name} does "
            f"not call graph {graph.name or 'main'}"
        )
    return _stand_in(graph, tensor, modified, {tensor._graph: tensor})


def _stand_in(
    graph: popxl.Graph,
    tensor: popxl.Tensor,
    modified: bool,
    known: dict[popxl.Graph, popxl.Tensor],
) -> popxl.Tensor:
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
        made = popxl.graph_input(tensor.shape, tensor.dtype, tensor.name, modified)
    for given, op, branch in calls:
        _pass_on(given, op, branch, modified)
    known[graph] = made
    return made


def _graphs_below(graph: popxl.Graph) -> Iterator[popxl.Graph]:
    """`graph` and all that it calls, each once."""
    found: dict[popxl.Graph, None] = {graph: None}
    queue = [graph]
    while queue:
        new = [g for g in queue.pop().called_graphs if g not in found]
        found.update(dict.fromkeys(new))
        queue += new
    return iter(found)


def _start(op: Op, branch: int) -> int:
    """The input of the op that is the first of the graph that it calls as `branch`."""
    return 0 if op.kind != "conditional" else 1 + branch * len(op.graphs[0]._inputs)


def _passed(op: Op, branch: int) -> tuple[popxl.Tensor, ...]:
    """What the op passes to the graph that it calls as `branch`."""
    start = _start(op, branch)
    return op.inputs[start : start + len(op.graphs[branch]._inputs)]


def _pass_on(given: popxl.Tensor, op: Op, branch: int, modified: bool) -> None:
    """Let the op pass one more tensor, to the graph's last input, which was just made."""
    at = _start(op, branch) + len(op.graphs[branch]._inputs) - 1
    op.inputs = (*op.inputs[:at], given, *op.inputs[at:])
    moved = tuple(i + (i >= at) for i in op.modifies)
    op.modifies = tuple(sorted((*moved, at))) if modified else moved
