"""Attention of one token a row over whole rows of a KV cache, all rows at once.

For devices where Python must not wait for numbers: positions are used where they are, and what lies
behind them is masked. Shapes do not depend on them, so that a CUDA graph can hold it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from popxl_torch.backends.reference.alibi import alibi
from popxl_torch.lowering.placement import move
from popxl_torch.memory.cells import Cell

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


def rows_attention(
    attend: Attend,
    lead: int,
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    cells: tuple[Cell, Cell],
    slopes: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Write k and v at the rows' positions, and attend up to these.

    Args:
        attend: `(q, k, v, bias, axes in front)` to the context, heads before tokens.
        qkv: each `(*mesh, batch, heads, head_dim)`.
        cells: caches `(*mesh, batch, heads, sequence_length, head_dim)`.
        slopes: of ALiBi (arXiv 2108.12409), `(*mesh, heads)`.
        positions: `(*mesh, batch)`; those behind the cache count as its last one.

    Returns:
        `(*mesh, batch, heads, head_dim)`.
    """
    q, *new = (t.unsqueeze(-2) for t in qkv)
    at = move(positions, q.device).long()
    keys, values = (_write(cell, t, at, lead) for cell, t in zip(cells, new, strict=True))
    context = attend(q, keys, values, _bias(slopes, at, keys.shape[-2]), lead + 1)
    return context.squeeze(-2)


def _write(cell: Cell, new: torch.Tensor, at: torch.Tensor, lead: int) -> torch.Tensor:
    """Put `(*mesh, batch, heads, 1, head_dim)` in the cache; returns the whole of it."""
    cache = cell.writable(new.shape[:lead], at.shape[:lead])
    size = (*cache.shape[:-2], 1, cache.shape[-1])
    index = at.clamp(0, cache.shape[-2] - 1)[..., None, None, None]
    return cache.scatter_(-2, index.expand(size), new.expand(size))


def _bias(slopes: torch.Tensor, at: torch.Tensor, keys: int) -> torch.Tensor:
    """Of one query a row: `(*mesh, batch, heads, 1, keys)`."""
    numbers = torch.arange(keys, dtype=torch.float32, device=at.device)
    return alibi(slopes[..., None, :, None, None], numbers - at[..., None, None, None])
