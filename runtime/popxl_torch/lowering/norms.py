"""Graphs declared as `layer_norm_distributed`.

They have inputs `t, w, b`, normalise the last dimension, whose parts are on the members of
a group, and take their sums over them by collectives of that group.
"""

from __future__ import annotations

import torch
from popxl.graph import Graph

from popxl_torch.backends.back_end import BackEnd
from popxl_torch.backends.specs import NormSpec
from popxl_torch.collectives.mesh import Mesh
from popxl_torch.fusion.declared import has_signature, kernel_for


class DistributedNorm(torch.nn.Module):
    """Layer norm of rows whose parts lie along a mesh axis.

    Args:
        graph: what is run where the back end does not do it.
    """

    def __init__(self, spec: NormSpec, back_end: BackEnd, graph: torch.nn.Module):
        super().__init__()
        self.spec, self.back_end, self.graph = spec, back_end, graph

    def forward(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor]:
        done = self.back_end.norm(self.spec, x, weight, bias)
        return self.graph(x, weight, bias) if done is None else (done,)


@kernel_for("layer_norm_distributed")
def _distributed(
    graph: Graph, mesh: Mesh, back_end: BackEnd, lowered: torch.nn.Module
) -> torch.nn.Module | None:
    declared = graph._declaration
    if declared is None or len(graph.inputs) != 3 or not graph.inputs[0].rank:
        return None
    x = graph.inputs[0]
    whole, part = (x.dtype.name, x.shape), (x.dtype.name, x.shape[-1:])
    names = ("epsilon", "assignment")
    if not has_signature(graph, [whole, part, part], [whole], attributes=names):
        return None
    epsilon, assignment = (declared.attributes[name] for name in names)
    group = graph.ir.replica_grouping_from_assignments(list(assignment))
    if group.group_size == 1:
        return DistributedNorm(NormSpec(mesh.lead, epsilon), back_end, lowered)
    axes = mesh.axes_of(group)
    if axes is None or len(axes) != 1:
        return None
    parts = (axes[0], mesh.dims[axes[0]])
    return DistributedNorm(NormSpec(mesh.lead, epsilon, parts), back_end, lowered)
