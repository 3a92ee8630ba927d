"""Attention over the filled part of a KV cache: graphs declared as `cached_attention`.

They have the attributes `bias="alibi"` and `queries`, which tokens the queries are
(`AttentionSpec`), and inputs `q, k, v, key_cache, value_cache, slopes, position(s)` and, but for a
token of each row, `row`:

* q, k, v `(tokens, heads, head_dim)`, result likewise;
* caches of the same dtype `(batch_size, heads, sequence_length, head_dim)`, by reference;
* slopes of ALiBi, float32 `(heads,)`; position and row int32, `position + tokens` not above the
  sequence length.

Each row's result depends on that row alone, to the bit: its shapes follow from its own length.
Where replicas give different positions or rows the graph itself is run.
"""

from __future__ import annotations

import torch
from popxl.graph import Graph

from popxl_torch.backends.back_end import BackEnd
from popxl_torch.backends.reference.back_end import Reference
from popxl_torch.backends.specs import AttentionSpec
from popxl_torch.collectives.mesh import Mesh
from popxl_torch.fusion.declared import has_signature, kernel_for
from popxl_torch.memory.cells import Cell

CACHES = (3, 4)
"""The inputs that are caches."""

ONE_OF_EACH, CHUNK = "token of each row", "chunk of a row"
QUERIES = (ONE_OF_EACH, CHUNK, "tokens of a row")


@kernel_for("cached_attention")
def _cached(
    graph: Graph, mesh: Mesh, back_end: BackEnd, lowered: torch.nn.Module
) -> torch.nn.Module | None:
    declared = graph._declaration
    if declared is None or len(graph.inputs) < 7 or declared.attributes.get("bias") != "alibi":
        return None
    queries = declared.attributes.get("queries", "")
    q, cache = graph.inputs[0], graph.inputs[3]
    if queries not in QUERIES or q.rank != 3 or cache.rank != 4 or not q.dtype.is_floating_point:
        return None
    (tokens, heads, head_dim), (rows, _, length, _) = q.shape, cache.shape
    of_rows = queries == ONE_OF_EACH
    if len(graph.inputs) != (7 if of_rows else 8) or (of_rows and tokens != rows):
        return None
    one = (q.dtype.name, q.shape)
    held = (q.dtype.name, (rows, heads, length, head_dim))
    positions: tuple[int, ...] = () if queries == CHUNK else (tokens,)
    places: list[tuple[str, tuple[int, ...]]] = [("int32", positions), ("int32", ())]
    inputs = [*[one] * 3, *[held] * 2, ("float32", (heads,)), *places[: len(graph.inputs) - 6]]
    fits = has_signature(graph, inputs, [one], by_ref=CACHES, attributes=["bias", "queries"])
    return CachedAttention(AttentionSpec(mesh.lead, queries), back_end, lowered) if fits else None


class CachedAttention(torch.nn.Module):
    """Runs a declared graph by the back end, by the reference, or as it is."""

    def __init__(self, spec: AttentionSpec, back_end: BackEnd, graph: torch.nn.Module):
        super().__init__()
        self.spec, self.graph = spec, graph
        self.ways = (back_end.attention, Reference().attention)

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        key_cell: Cell,
        value_cell: Cell,
        slopes: torch.Tensor,
        positions: torch.Tensor,
        row: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor]:
        given = (q, k, v), (key_cell, value_cell), slopes, positions, row
        for attend in self.ways:
            done = attend(self.spec, *given)
            if done is not None:
                return (done,)
        number = () if row is None else (row,)
        return self.graph(q, k, v, key_cell, value_cell, slopes, positions, *number)
