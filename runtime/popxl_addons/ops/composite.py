"""Ops that are graphs of their own.

Each is written in PopXL's ops and called with `ops.call`; that graph is its meaning. It is declared
under the op's name, so that whoever runs the program may compute it by a kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import popxl
from popxl import ops

from ..graph_cache import GraphCache


def composite(name: str, build: Callable[..., popxl.Tensor]) -> Callable[..., popxl.Tensor]:
    """The op `name` whose graph `build` makes, from tensors (first) and hashable settings.

    The graph is made once in an Ir for each set of shapes, dtypes and settings.
    """
    build.__name__ = build.__qualname__ = f"popxl_addons.{name}"  # the graph's name
    # What `popxl_torch.composite` does; `popxl.Ir.create_graph` reads it, and the SDK does not.
    setattr(build, "__popxl_composite__", (name, 1, {}))  # noqa: B010
    cache = GraphCache()

    def call(*args: Any) -> popxl.Tensor:
        graph = cache.create_graph(build, *args)
        tensors = [arg for arg in args if isinstance(arg, popxl.Tensor)]
        (output,) = ops.call(graph, *tensors)
        return output

    return call
