"""Attention on a GPU where the replicas of the mesh hold one value: by the Triton kernels."""

from __future__ import annotations

from types import ModuleType

import torch

from popxl.backend.cells import Cell
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
    caches = [cell.writable(qkv[1].shape[:lead]) for cell in cells]
    alone = flat(lead, *qkv, *caches, slopes, move(positions, qkv[0].device))
    if alone is None:
        return None
    q, k, v, keys, values, slopes, positions = alone
    done = kernels.token_attention((q, k, v), (keys, values), slopes, positions)
    return None if done is None else done.reshape((1,) * lead + done.shape)


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
    alone = flat(lead, q, *caches, slopes)
    if alone is None:
        return None
    done = kernels.chunk_attention(alone[0], (alone[1], alone[2]), alone[3], at)
    return None if done is None else done.reshape(q.shape)


def flat(lead: int, *tensors: torch.Tensor) -> list[torch.Tensor] | None:
    """The tensors without their mesh; None where there are several replicas' values in one."""
    if any(size > 1 for t in tensors for size in t.shape[:lead]):
        return None
    return [t.reshape(t.shape[lead:]) for t in tensors]
