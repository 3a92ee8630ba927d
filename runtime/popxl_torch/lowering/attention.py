"""Attention over the filled part of a KV cache: graphs declared as `cached_attention`.

They have the attributes `bias`, "alibi" or "none", and `queries`, which tokens the queries are
(`AttentionSpec`), and may have `scale` and `window`, as that has them. Their inputs are `q, k, v,
key_cache, value_cache`, with ALiBi `slopes`, `position(s)` and, but for a token of each row,
`row(s)`:

* q `(tokens, heads, head_dim)`, result likewise; k and v `(tokens, kv_heads, head_dim)`;
* caches of the same dtype `(batch_size, kv_heads, sequence_length, head_dim)`, by reference;
* slopes, float32 `(heads,)`; position and row int32, `position + tokens` not above the sequence
  length; of tokens of some rows `(tokens,)`, those of one row copies of one token; of chunks of
  rows `(blocks,)`, of as many tokens each, those of one row in order.

Each row's result depends on that row alone, to the bit: its shapes follow from its own length.
Where replicas give different positions or rows the graph itself is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

ONE_OF_EACH, ONE_OF_SOME = "token of each row", "token of some rows"
CHUNK, CHUNKS = "chunk of a row", "chunks of rows"
QUERIES = (ONE_OF_EACH, ONE_OF_SOME, CHUNK, CHUNKS, "tokens of a row")

MORE = ("scale", "window")
"""Attributes that need not be there."""


@kernel_for("cached_attention")
def _cached(
    graph: Graph, mesh: Mesh, back_end: BackEnd, lowered: torch.nn.Module
) -> torch.nn.Module | None:
    if graph._declaration is None or len(graph.inputs) < 6:
        return None
    given = graph._declaration.attributes
    q, cache = graph.inputs[0], graph.inputs[3]
    if q.rank != 3 or cache.rank != 4 or not q.dtype.is_floating_point or not _are_known(given):
        return None
    (tokens, heads, head_dim), (rows, kv_heads, length, _) = q.shape, cache.shape
    queries, alibi = given["queries"], given["bias"] == "alibi"
    of_rows = queries == ONE_OF_EACH
    if not kv_heads or heads % kv_heads or (of_rows and tokens != rows):
        return None
    one, new = ((q.dtype.name, (tokens, count, head_dim)) for count in (heads, kv_heads))
    held = (q.dtype.name, (rows, kv_heads, length, head_dim))
    positions: tuple[int, ...] = () if queries == CHUNK else (tokens,)
    if queries == CHUNKS:
        positions = graph.inputs[-1].shape
        if len(positions) != 1 or not positions[0] or tokens % positions[0]:
            return None
    of = positions if queries in (ONE_OF_SOME, CHUNKS) else ()
    places: list[tuple[str, tuple[int, ...]]] = [("int32", positions), ("int32", of)]
    slopes = [("float32", (heads,))] if alibi else []
    inputs = [one, *[new] * 2, *[held] * 2, *slopes, *places[: 1 if of_rows else 2]]
    if not has_signature(graph, inputs, [one], by_ref=CACHES, attributes=given):
        return None
    more = {name: given.get(name) for name in MORE}
    spec = AttentionSpec(mesh.lead, queries, heads // kv_heads, alibi, **more)
    return CachedAttention(spec, back_end, lowered)


def _are_known(given: Mapping[str, Any]) -> bool:
    """Whether attributes, and their values, are what is known of attention."""
    window, scale = given.get("window"), given.get("scale")
    return (
        {"bias", "queries"} <= set(given) <= {"bias", "queries", *MORE}
        and given["bias"] in ("alibi", "none")
        and given["queries"] in QUERIES
        and (window is None or (type(window) is int and window > 0))
        and (scale is None or type(scale) is float)
    )


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
        *others: torch.Tensor,
    ) -> tuple[torch.Tensor]:
        places = list(others)
        slopes = places.pop(0) if self.spec.alibi else None
        positions, row = places[0], places[1] if len(places) > 1 else None
        given = (q, k, v), (key_cell, value_cell), slopes, positions, row
        for attend in self.ways:
            done = attend(self.spec, *given)
            if done is not None:
                return (done,)
        return self.graph(q, k, v, key_cell, value_cell, *others)
