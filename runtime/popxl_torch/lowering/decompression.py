"""Weights of 4-bit groups as floats: graphs declared as `group_quantize_decompress`.

Such a graph has inputs `t, group_scale, group_bias`, uint16 `(rows, groups, words)` and float32
`(rows, groups, 1)`, and gives `(rows, groups * words * 4)`. In other types it rounds in between.
"""

from __future__ import annotations

import torch
from popxl.graph import Graph
from popxl_shared.groups import PER_WORD

from popxl_torch.backends.back_end import BackEnd
from popxl_torch.backends.specs import StoredWeight
from popxl_torch.collectives.mesh import Mesh
from popxl_torch.fusion.declared import has_signature, kernel_for


class Decompress(torch.nn.Module):
    """The elements of groups.

    Args:
        graph: what is run where the back end does not do it.
    """

    def __init__(self, back_end: BackEnd, graph: torch.nn.Module):
        super().__init__()
        self.back_end, self.graph = back_end, graph

    def forward(
        self, words: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor]:
        done = self.back_end.dequantise(StoredWeight(words, scale, bias), scale.dtype)
        return self.graph(words, scale, bias) if done is None else (done.transpose(-1, -2),)


@kernel_for("group_quantize_decompress")
def _decompress(
    graph: Graph, mesh: Mesh, back_end: BackEnd, lowered: torch.nn.Module
) -> torch.nn.Module | None:
    if len(graph.inputs) != 3 or graph.inputs[0].rank != 3:
        return None
    rows, groups, words = graph.inputs[0].shape
    of_group = ("float32", (rows, groups, 1))
    fits = has_signature(
        graph,
        [("uint16", (rows, groups, words)), of_group, of_group],
        [("float32", (rows, groups * words * PER_WORD))],
        attributes=["dim"],
    )
    return Decompress(back_end, lowered) if fits and _last(graph) else None


def _last(graph: Graph) -> bool:
    """Whether the dimension that groups lie along is the last one of the result."""
    declared = graph._declaration
    return declared is not None and declared.attributes["dim"] in (-1, 1)
