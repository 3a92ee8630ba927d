"""Attention of one token a row over whole rows of a KV cache, all rows at once.

For devices where Python must not wait for numbers: positions are used where they are, and what lies
behind them is masked. Shapes do not depend on them, so that a CUDA graph can hold it.
"""

from __future__ import annotations

import torch

from popxl_torch.backends.reference.scores import attend, score_bias
from popxl_torch.backends.specs import AttentionSpec
from popxl_torch.lowering.placement import move
from popxl_torch.memory.cells import Cell


def rows_attention(
    spec: AttentionSpec,
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    cells: tuple[Cell, Cell],
    slopes: torch.Tensor | None,
    positions: torch.Tensor,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Write k and v at the rows' positions, and attend up to these.

    Args:
        qkv: each `(*mesh, batch, heads, head_dim)`.
        cells: caches `(*mesh, batch, heads, sequence_length, head_dim)`.
        slopes: of ALiBi, `(*mesh, heads)`.
        positions: `(*mesh, batch)`; those behind the cache count as its last one.
        rows: of the caches that the tokens are of, `(*mesh, batch)`, the same in all replicas;
            each of its own where None.

    Returns:
        `(*mesh, batch, heads, head_dim)`.
    """
    q, *new = (t.unsqueeze(-2) for t in qkv)
    at = move(positions, q.device).long()
    of = None if rows is None else move(rows, q.device).long()
    keys, values = (_write(cell, t, at, spec.lead, of) for cell, t in zip(cells, new, strict=True))
    numbers = torch.arange(keys.shape[-2], dtype=torch.float32, device=at.device)
    distance = numbers - at[..., None, None, None]  # [*mesh, batch, 1, 1, keys]
    own = None if slopes is None else slopes[..., None, :, None, None]
    bias = score_bias(spec, own, distance)
    context = attend(spec, q, keys, values, bias, spec.lead + 1)
    return context.squeeze(-2)


def _write(
    cell: Cell, new: torch.Tensor, at: torch.Tensor, lead: int, rows: torch.Tensor | None
) -> torch.Tensor:
    """Put `(*mesh, batch, heads, 1, head_dim)` in the cache; returns the rows that they are of."""
    cache = cell.writable(new.shape[:lead], at.shape[:lead])
    index = at.clamp(0, cache.shape[-2] - 1)[..., None, None, None]
    if rows is None:
        size = (*cache.shape[:-2], 1, cache.shape[-1])
        return cache.scatter_(-2, index.expand(size), new.expand(size))
    of = rows.reshape(-1, rows.shape[-1])[0].clamp(0, cache.shape[lead] - 1)
    held = cache.index_select(lead, of)
    size = (*held.shape[:-2], 1, held.shape[-1])
    held.scatter_(-2, index.expand(size), new.expand(size))
    cache.index_copy_(lead, of, held)
    return held
