"""Ops that say where an IPU keeps the code of a graph. They have no effect here."""

from __future__ import annotations

from typing import Literal

from popxl.context import get_current_graph
from popxl.graph import Graph

CodeLocation = Literal["executable", "compute_buffer", "io_buffer"]
LOCATIONS = ("executable", "compute_buffer", "io_buffer")


def remote_code_load(graph: Graph, destination: CodeLocation) -> None:
    """Accepted, without effect: bring the code of a graph to `destination` before it is called.

    Raises:
        TypeError: where `graph` is no graph.
        ValueError: where it is the current graph, or the destination is unknown.
    """
    if not isinstance(graph, Graph):
        raise TypeError(f"remote_code_load: expected a graph, got {type(graph).__name__}")
    if graph is get_current_graph():
        raise ValueError(
            "The remote_code_load op cannot load the code of the graph that it is in "
            f"({graph.name or 'main'})"
        )
    if destination not in LOCATIONS:
        raise ValueError(
            f"remote_code_load: destination {destination!r}: allowed are {', '.join(LOCATIONS)}"
        )
