"""Whether a graph is called from another; tensors are not routed into graphs that are built."""

from __future__ import annotations

import popxl
from popxl._absent import REWRITING, absent


def is_subgraph(parent: popxl.Graph, subgraph: popxl.Graph) -> bool:
    """Whether `subgraph` is `parent`, or one that it calls, directly or through others."""
    return parent is subgraph or any(is_subgraph(g, subgraph) for g in parent.called_graphs)


route_tensor_into_graph = absent("popxl_addons.route_tensor_into_graph", REWRITING)
