"""Attention of one token a row over a KV cache: one call for all rows, heads and shards."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from popxl.backend.native.library import (
    ATTENTION,
    CHUNK,
    FLOATS,
    TYPES,
    Library,
    is_packed,
    joint_mesh,
    mesh_sizes,
    mesh_strides,
)


def token_attention(
    native: Library,
    lead: int,
    tokens: Sequence[torch.Tensor],
    caches: Sequence[torch.Tensor],
    slopes: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor | None:
    """Put each row's key and value in its caches and attend over what is filled.

    Args:
        lead: the number of mesh axes in front of every tensor.
        tokens: queries, keys and values, `(*mesh, rows, heads, size)`.
        caches: of keys and values, `(*mesh, rows, heads, length, size)`, written to.
        slopes: float32 `(*mesh, heads)`.
        positions: int32 `(*mesh, rows)`, the same for all shards.

    Returns:
        `(*mesh, rows, heads, size)`; None where this kernel does not do it, and nothing is
        written.
    """
    rows, heads, size = tokens[0].shape[lead:]
    if not _fits(lead, tokens, caches, slopes, positions, rows):
        return None
    mesh = joint_mesh(lead, *tokens, *caches, slopes)
    if any(cache.shape[:lead] != mesh for cache in caches):
        return None  # two shards would write to one place
    result = torch.empty((*mesh, rows, heads, size), dtype=tokens[0].dtype)
    q, k, v = tokens
    native.run(
        ATTENTION,
        result,
        *(t.data_ptr() for t in (q, k, v, slopes, positions, *caches, result)),
        *(TYPES[q.dtype], rows, heads, size, caches[0].shape[-2]),
        *mesh_sizes(mesh),
        *(s for t in tokens for s in (*mesh_strides(t, lead), *t.stride()[lead : lead + 2])),
        *(s for t in caches for s in (*mesh_strides(t, lead), *t.stride()[lead : lead + 3])),
        *mesh_strides(slopes, lead),
        *(*mesh_strides(result, lead), *result.stride()[lead : lead + 2]),
    )
    return result


def _fits(
    lead: int,
    tokens: Sequence[torch.Tensor],
    caches: Sequence[torch.Tensor],
    slopes: torch.Tensor,
    positions: torch.Tensor,
    rows: int,
) -> bool:
    alike = (*tokens, *caches)
    return (
        lead <= 3
        and positions.numel() == rows
        and positions.dtype == torch.int32
        and is_packed(positions)
        and slopes.dtype == torch.float32
        and is_packed(slopes)
        and tokens[0].dtype in FLOATS
        and all(t.dtype == tokens[0].dtype and t.device.type == "cpu" for t in alike)
        and all(is_packed(t) for t in alike)
    )


def chunk_attention(
    native: Library,
    lead: int,
    q: torch.Tensor,
    caches: Sequence[torch.Tensor],
    slopes: torch.Tensor,
    position: int,
) -> torch.Tensor | None:
    """The attention of a chunk of tokens of one row, whose keys and values are in the caches.

    Args:
        lead: the number of mesh axes in front of every tensor.
        q: `(*mesh, tokens, heads, size)`.
        caches: keys and values of the row, `(*mesh, heads, length, size)`.
        slopes: float32 `(*mesh, heads)`.
        position: of the first token.

    Returns:
        `(*mesh, tokens, heads, size)`; None where this kernel does not do it.
    """
    tokens, heads, size = q.shape[lead:]
    alike = (q, *caches)
    if (
        lead > 3
        or q.dtype not in FLOATS
        or slopes.dtype != torch.float32
        or not is_packed(slopes)
        or any(t.dtype != q.dtype or t.device.type != "cpu" or not is_packed(t) for t in alike)
    ):
        return None
    mesh = joint_mesh(lead, *alike, slopes)
    result = torch.empty((*mesh, tokens, heads, size), dtype=q.dtype)
    native.run(
        CHUNK,
        result,
        *(t.data_ptr() for t in (q, *caches, slopes, result)),
        *(TYPES[q.dtype], tokens, heads, size, caches[0].shape[-2], position),
        *mesh_sizes(mesh),
        *(*mesh_strides(q, lead), *q.stride()[lead : lead + 2]),
        *(s for t in caches for s in (*mesh_strides(t, lead), *t.stride()[lead : lead + 2])),
        *mesh_strides(slopes, lead),
        *(*mesh_strides(result, lead), *result.stride()[lead : lead + 2]),
    )
    return result
