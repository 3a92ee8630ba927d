"""Layer norms by the native kernel: the op, and graphs made from `layer_norm_distributed`.

Such a graph has inputs `t, w, b`, normalises the last dimension, whose parts are on the members of
a group, and takes its sums over them by collectives of that group.
"""

from __future__ import annotations

import torch

from popxl.backend import kernels
from popxl.backend.composites import Composites, composite
from popxl.backend.mesh import Mesh
from popxl.backend.native.library import Library
from popxl.backend.native.norm import norm
from popxl.graph import Graph
from popxl.tensor import Constant


class RunNorm:
    """The `layer_norm` op: natively, or in torch where the kernel does not do it."""

    def __init__(self, native: Library, lead: int, epsilon: float):
        self.native, self.lead, self.epsilon = native, lead, epsilon
        self.__name__ = "layer_norm"

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        done = norm(self.native, self.lead, x, weight, bias, self.epsilon)
        if done is not None:
            return done
        return kernels.layer_norm(x, weight, bias, self.lead, self.epsilon)


class DistributedNorm(torch.nn.Module):
    """Layer norm of rows whose parts lie along a mesh axis.

    Args:
        graph: what is run where the kernel does not do it.
    """

    def __init__(
        self,
        native: Library,
        lead: int,
        epsilon: float,
        parts: tuple[int, int] | None,
        graph: torch.nn.Module,
    ):
        super().__init__()
        self.native, self.lead, self.epsilon, self.parts = native, lead, epsilon, parts
        self.graph = graph

    def forward(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor]:
        done = norm(self.native, self.lead, x, weight, bias, self.epsilon, self.parts)
        return self.graph(x, weight, bias) if done is None else (done,)


@composite("layer_norm_distributed")
def _distributed(
    graph: Graph, mesh: Mesh, known: Composites, lowered: torch.nn.Module
) -> torch.nn.Module | None:
    epsilon, native = _epsilon(graph), known.native
    if native is None or epsilon is None or len(graph.inputs) != 3 or len(graph.outputs) != 1:
        return None
    groups = [op.group for op in graph._ops if "group" in op.attributes]
    if not groups:
        return DistributedNorm(native, mesh.lead, epsilon, None, lowered)
    axes = mesh.axes_of(groups[0])
    if len(set(groups)) != 1 or axes is None or len(axes) != 1:
        return None
    parts = axes[0], mesh.dims[axes[0]]
    return DistributedNorm(native, mesh.lead, epsilon, parts, lowered)


def _epsilon(graph: Graph) -> float | None:
    """What is added to what the square root is taken of."""
    roots = [op.inputs[0] for op in graph._ops if op.kind == "sqrt"]
    sums = [op for op in graph._ops if op.kind == "add" and op.outputs[0] in roots]
    constants = [t for op in sums for t in op.inputs if isinstance(t, Constant)]
    return float(constants[0]._data) if len(roots) == len(constants) == 1 else None
