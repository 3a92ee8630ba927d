"""A graph made to do what it does several times."""

from __future__ import annotations

import popxl
from popxl import ops
from popxl.graph import Op
from popxl.tensor import Constant, Tensor


def repeat_graph(graph: popxl.Graph, repeat_count: int) -> popxl.Graph:
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
    body = graph.ir.create_empty_graph("repeat_graph")
    given: dict[Tensor, Tensor] = {}
    moved: dict[Tensor, Tensor] = {}
    with body:
        for op in graph._ops:
            inputs = tuple(_inside(t, moved, given) for t in op.inputs)
            moved |= {t: Tensor._make(body, t.spec, t.name) for t in op.outputs}
            outputs = tuple(moved[t] for t in op.outputs)
            body._ops.append(Op(op.kind, inputs, outputs, op.attributes, op.graphs, op.modifies))
    graph._ops.clear()
    with graph:
        ops.repeat(body, repeat_count, inputs_dict=given)
    return body


def _inside(t: Tensor, moved: dict[Tensor, Tensor], given: dict[Tensor, Tensor]) -> Tensor:
    """What stands for `t` in the new graph: a constant, an input, or what an op there made."""
    if t not in moved:
        if isinstance(t, Constant):
            moved[t] = popxl.constant(t._data, t.dtype, t.name)
        else:
            moved[t] = popxl.graph_input(t.shape, t.dtype, t.name, True, t.meta_shape)
            given[moved[t]] = t
    return moved[t]
