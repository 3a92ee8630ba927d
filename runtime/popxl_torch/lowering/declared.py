"""The graphs that a program may declare and a kernel knows; products are in `fusion/products.py`.

Where the back end does not do what such a graph says, the graph is run.

`cached_attention` is attention over the filled part of a KV cache. Its attributes are `bias`,
"alibi" or "none", and `queries`, which tokens the queries are (`AttentionSpec`); there may be
`scale` and `window`, as that has them. Its inputs are `q, k, v, key_cache, value_cache`, with ALiBi
`slopes`, `position(s)` and, but for a token of each row, `row(s)`:

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
from functools import partial
from typing import Any

import torch
from popxl.graph import Graph
from popxl_shared.groups import PER_WORD

from popxl_torch.backends.back_end import BackEnd
from popxl_torch.backends.reference.back_end import Reference
from popxl_torch.backends.specs import AttentionSpec, NormSpec, StoredWeight
from popxl_torch.collectives.mesh import Mesh
from popxl_torch.fusion.declared import Run, has_signature, kernel_for

CACHES = (3, 4)
"""The inputs that are caches."""

ONE_OF_EACH, ONE_OF_SOME = "token of each row", "token of some rows"
CHUNK, CHUNKS = "chunk of a row", "chunks of rows"
QUERIES = (ONE_OF_EACH, ONE_OF_SOME, CHUNK, CHUNKS, "tokens of a row")

MORE = ("scale", "window")
"""Attributes that need not be there."""


@kernel_for("cached_attention")
def _cached(graph: Graph, mesh: Mesh, back_end: BackEnd) -> Run | None:
    """Attention, as the head of this file has it."""
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
    return partial(_attend, back_end, spec)


def _attend(back_end: BackEnd, spec: AttentionSpec, *inputs: Any) -> torch.Tensor | None:
    q, k, v, key_cell, value_cell, *places = inputs
    slopes = places.pop(0) if spec.alibi else None
    row = places[1] if len(places) > 1 else None
    given = (q, k, v), (key_cell, value_cell), slopes, places[0], row
    done = back_end.attention(spec, *given)
    return Reference().attention(spec, *given) if done is None else done


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


@kernel_for("layer_norm_distributed")
def _norm(graph: Graph, mesh: Mesh, back_end: BackEnd) -> Run | None:
    """Layer norm of the last dimension, whose parts are on the members of a group.

    Inputs are `t, w, b`; sums over the parts are taken by collectives of the group.
    """
    declared = graph._declaration
    if declared is None or len(graph.inputs) != 3 or not graph.inputs[0].rank:
        return None
    x = graph.inputs[0]
    whole, part = (x.dtype.name, x.shape), (x.dtype.name, x.shape[-1:])
    names = ("epsilon", "assignment")
    if not has_signature(graph, [whole, part, part], [whole], attributes=names):
        return None
    epsilon, assignment = (declared.attributes[name] for name in names)
    group, parts = graph.ir.replica_grouping_from_assignments(list(assignment)), None
    if group.group_size > 1:
        axes = mesh.axes_of(group)
        if axes is None or len(axes) != 1:
            return None
        parts = (axes[0], mesh.dims[axes[0]])
    return partial(back_end.norm, NormSpec(mesh.lead, epsilon, parts))


@kernel_for("group_quantize_decompress")
def _decompress(graph: Graph, mesh: Mesh, back_end: BackEnd) -> Run | None:
    """Weights of 4-bit groups as floats.

    Inputs are `t, group_scale, group_bias`, uint16 `(rows, groups, words)` and float32 `(rows,
    groups, 1)`; the result is `(rows, groups * words * 4)`. In other types it rounds in between.
    """
    declared = graph._declaration
    if declared is None or len(graph.inputs) != 3 or graph.inputs[0].rank != 3:
        return None
    rows, groups, words = graph.inputs[0].shape
    of_group = ("float32", (rows, groups, 1))
    inputs = [("uint16", (rows, groups, words)), of_group, of_group]
    result = ("float32", (rows, groups * words * PER_WORD))
    if not has_signature(graph, inputs, [result], attributes=["dim"]):
        return None
    if declared.attributes["dim"] not in (-1, 1):
        return None  # groups lie along another dimension of the result

    def decompress(words: torch.Tensor, *of_groups: torch.Tensor) -> torch.Tensor | None:
        done = back_end.dequantise(StoredWeight(words, *of_groups), of_groups[0].dtype)
        return None if done is None else done.transpose(-1, -2)

    return decompress
