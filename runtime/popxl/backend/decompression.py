"""Weights of 4-bit groups as floats by the native kernel: graphs of `group_quantize_decompress`.

Such a graph has inputs `t, group_scale, group_bias`, uint16 `(rows, groups, words)` and float32
`(rows, groups, 1)`, and gives `(rows, groups * words * 4)`. In other types it rounds in between.
"""

from __future__ import annotations

import torch

from popxl.backend.composites import Composites, composite
from popxl.backend.mesh import Mesh
from popxl.backend.native.library import Library
from popxl.backend.native.linear import Weight, decompressed
from popxl.graph import Graph


class Decompress(torch.nn.Module):
    """The elements of groups.

    Args:
        graph: what is run where the kernel does not do it.
    """

    def __init__(self, native: Library, graph: torch.nn.Module):
        super().__init__()
        self.native, self.graph = native, graph

    def forward(
        self, words: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor]:
        done = decompressed(self.native, Weight(words, scale, bias), scale.dtype)
        return self.graph(words, scale, bias) if done is None else (done.transpose(-1, -2),)


@composite("group_quantize_decompress")
def _decompress(
    graph: Graph, mesh: Mesh, known: Composites, lowered: torch.nn.Module
) -> torch.nn.Module | None:
    if known.native is None or len(graph.inputs) != 3 or len(graph.outputs) != 1:
        return None
    words, scale, bias = graph.inputs
    fits = (
        words.rank == 3
        and words.dtype.name == "uint16"
        and scale.shape == bias.shape == (*words.shape[:2], 1)
        and {t.dtype.name for t in (scale, bias, graph.outputs[0])} == {"float32"}
        and graph._ops[-1].kind != "transpose"
    )
    return Decompress(known.native, lowered) if fits else None
