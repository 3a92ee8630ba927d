"""Whether a graph is called from another, and tensors used in graphs that theirs calls."""

from popxl.rewriting import is_subgraph, route_tensor_into_graph

__all__ = ["is_subgraph", "route_tensor_into_graph"]
