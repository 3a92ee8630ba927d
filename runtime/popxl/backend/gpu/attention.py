"""Attention on a GPU by the Triton kernels, of all replicas of the mesh at once."""

from __future__ import annotations

from types import ModuleType

import torch

from popxl.backend.arrays import broadcast_shapes
from popxl.backend.cells import Cell
from popxl.backend.gpu.replicas import by_replica, without_mesh
from popxl.backend.placement import move


def tokens_on_gpu(
    kernels: ModuleType,
    lead: int,
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    cells: tuple[Cell, Cell],
    slopes: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor | None:
    """Write k and v at the rows' positions, and attend up to these, as `rows_attention` does.

    Returns:
        `(*mesh, batch, heads, head_dim)`; None where the kernel does not do it.
    """
    mesh = _mesh(lead, *qkv[1:], *(cell.tensor for cell in cells))
    one = all(size == 1 for size in positions.shape[:lead])
    if not one or _mesh(lead, qkv[1], qkv[0], slopes, *(cell.tensor for cell in cells)) != mesh:
        return None  # caches hold no more than k and v ask for
    own = _caches(mesh, [cell.writable(mesh) for cell in cells])
    if own is None:
        return None
    rows = [by_replica(mesh, t).flatten(0, 1) for t in qkv]
    keys, values = (t.flatten(0, 1) for t in own)
    at = move(positions.flatten(), qkv[0].device)
    slopes = by_replica(mesh, slopes)
    done = kernels.token_attention((rows[0], rows[1], rows[2]), (keys, values), slopes, at)
    return None if done is None else done.reshape(*mesh, *qkv[0].shape[lead:])


def prompt_on_gpu(
    kernels: ModuleType,
    lead: int,
    q: torch.Tensor,
    caches: tuple[torch.Tensor, torch.Tensor],
    slopes: torch.Tensor,
    at: int,
) -> torch.Tensor | None:
    """A chunk of tokens of a row, whose keys and values are in the cache.

    Args:
        q: `(*mesh, tokens, heads, head_dim)`.
        caches: of the row, `(*mesh, heads, sequence_length, head_dim)`.
        at: where the first token stands.

    Returns:
        Like q; None where the kernel does not do it.
    """
    mesh = _mesh(lead, q, slopes, *caches)
    own = _caches(mesh, caches)
    if own is None:
        return None
    slopes = by_replica(mesh, slopes)
    done = kernels.chunk_attention(by_replica(mesh, q), (own[0], own[1]), slopes, at)
    return None if done is None else done.reshape(*mesh, *q.shape[lead:])


def _mesh(lead: int, *tensors: torch.Tensor) -> tuple[int, ...]:
    return tuple(broadcast_shapes(*(t.shape[:lead] for t in tensors)))


def _caches(
    mesh: tuple[int, ...], caches: list[torch.Tensor] | tuple[torch.Tensor, torch.Tensor]
) -> list[torch.Tensor] | None:
    """`(replicas, ...)` each, where they lie; None where that is no tensor."""
    lead = len(mesh)
    own = [without_mesh(lead, t) for t in caches if t.shape[:lead] == mesh]
    found = [t for t in own if t is not None]
    return found if len(found) == len(caches) else None
