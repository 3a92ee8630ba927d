"""What a graph, with all that it calls, reaches outside of its replica's tensors."""

from __future__ import annotations

from popxl.graph import Graph, Op
from popxl.remote_buffer import RemoteBuffer

from popxl_torch.analysis.op_facts import facts_of


def is_steady(graph: Graph, seen: set[Graph] | None = None) -> bool:
    """Whether a graph, and all that it calls, has no branches and does nothing outside itself."""
    seen = set() if seen is None else seen
    if graph in seen:
        return True
    seen.add(graph)
    return all(facts_of(op).steady for op in graph._ops) and all(
        is_steady(called, seen) for called in graph.called_graphs
    )


def only_loads(graph: Graph) -> bool:
    """Whether a graph gives what slots hold, where they lie: a recording would copy that."""
    return all(facts_of(op).cost == "loaded" for op in graph._ops)


def reaches_outside(graph: Graph) -> str:
    """What it, or a graph it calls, does outside of its replica's tensors; empty where nothing."""
    together = graph.ir.instance_replication_factor
    for op in graph._ops:
        facts = facts_of(op)
        if facts.stream or facts.remote == "store":
            return "stores to a remote buffer or uses a stream"
        if facts.exchanges and op.group._crosses(together):
            return f"has an {op.kind} between processes"
    return next(filter(None, map(reaches_outside, graph.called_graphs)), "")


def buffers_of(
    graph: Graph, seen: dict[Graph, set[RemoteBuffer]] | None = None
) -> set[RemoteBuffer]:
    """The remote buffers that a graph, or one it calls, loads from or stores to."""
    seen = {} if seen is None else seen
    if graph not in seen:
        seen[graph] = {op.buffer for op in graph._ops if facts_of(op).remote}
        for called in graph.called_graphs:
            seen[graph] |= buffers_of(called, seen)
    return seen[graph]


def buffers_of_called(graph: Graph) -> dict[Graph, set[RemoteBuffer]]:
    """`buffers_of` of each graph that an op of `graph` calls."""
    seen: dict[Graph, set[RemoteBuffer]] = {}
    return {called: buffers_of(called, seen) for called in graph.called_graphs}


def touches(op: Op, buffer: RemoteBuffer, called: dict[Graph, set[RemoteBuffer]]) -> bool:
    """Whether an op loads from or stores to a buffer, or calls a graph that does."""
    if facts_of(op).remote:
        return op.buffer is buffer
    return any(buffer in called[graph] for graph in op.graphs)
