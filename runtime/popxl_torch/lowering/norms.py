"""Layer norms by the native kernel: the op, and graphs declared as `layer_norm_distributed`.

Such a graph has inputs `t, w, b`, normalises the last dimension, whose parts are on the members of
a group, and takes its sums over them by collectives of that group.
"""

from __future__ import annotations

import torch
from popxl.graph import Graph

from popxl_torch.backends.cpu.library import Library
from popxl_torch.backends.cpu.norm import norm
from popxl_torch.backends.reference import functions as kernels
from popxl_torch.collectives.mesh import Mesh
from popxl_torch.fusion.declared import Composites, has_signature, kernel_for


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


@kernel_for("layer_norm_distributed")
def _distributed(
    graph: Graph, mesh: Mesh, known: Composites, lowered: torch.nn.Module
) -> torch.nn.Module | None:
    native, declared = known.native, graph._declaration
    if native is None or declared is None or len(graph.inputs) != 3 or not graph.inputs[0].rank:
        return None
    x = graph.inputs[0]
    whole, part = (x.dtype.name, x.shape), (x.dtype.name, x.shape[-1:])
    names = ("epsilon", "assignment")
    if not has_signature(graph, [whole, part, part], [whole], attributes=names):
        return None
    epsilon, assignment = (declared.attributes[name] for name in names)
    group = graph.ir.replica_grouping_from_assignments(list(assignment))
    if group.group_size == 1:
        return DistributedNorm(native, mesh.lead, epsilon, None, lowered)
    axes = mesh.axes_of(group)
    if axes is None or len(axes) != 1:
        return None
    return DistributedNorm(native, mesh.lead, epsilon, (axes[0], mesh.dims[axes[0]]), lowered)
