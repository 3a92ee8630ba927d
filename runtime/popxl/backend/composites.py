"""Kernels that stand in for whole graphs.

A graph made from a function of a known name, with the inputs and outputs that the kernel expects,
is not run op by op: its kernel is called instead. The graph remains what the name means; tests hold
the kernel against it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType

import torch

from popxl.backend.mesh import Mesh
from popxl.backend.native.library import Library
from popxl.graph import Graph, Op

Factory = Callable[[Graph, Mesh, "Composites", torch.nn.Module], torch.nn.Module | None]
"""Makes the kernel of one graph, with the kernels of the device, and the lowered graph to fall back
on; None where the graph is not what the kernel knows."""

_FACTORIES: dict[str, Factory] = {}


def composite(name: str) -> Callable[[Factory], Factory]:
    """Register the kernel for graphs made from a function called `name`."""

    def register(factory: Factory) -> Factory:
        _FACTORIES[name] = factory
        return factory

    return register


def function_name(graph: Graph) -> str:
    """The name of the function that a graph was made from."""
    return re.sub(r"_\d+$", "", graph.name).rsplit(".", 1)[-1]


class Composites:
    """The kernels that a session uses: all that are known, or none."""

    def __init__(
        self, enabled: bool = True, native: Library | None = None, gpu: ModuleType | None = None
    ):
        """
        Args:
            native, gpu: the kernels for the device, `gpu/kernels.py` on a GPU, where there are any.
        """
        self.enabled = enabled
        self.native, self.gpu = (native, gpu) if enabled else (None, None)
        if enabled:
            # They register their kernels.
            from popxl.backend import attention, decompression, norms  # noqa: F401

    def find(self, op: Op, mesh: Mesh, lowered: torch.nn.Module) -> torch.nn.Module | None:
        """The kernel for the graph that `op` calls, if there is one."""
        graph = op.graphs[0]
        factory = _FACTORIES.get(function_name(graph)) if self.enabled else None
        return factory(graph, mesh, self, lowered) if factory else None
