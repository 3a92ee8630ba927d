"""Attention on a GPU by the Triton kernels, of all replicas of the mesh at once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from popxl_torch.backends.cuda.replicas import by_replica, without_mesh
from popxl_torch.lowering.placement import move
from popxl_torch.memory.arrays import broadcast_shapes
from popxl_torch.memory.cells import Cell


def attention_on_gpu(
    kernel: Callable[..., torch.Tensor | None],
    lead: int,
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    cells: tuple[Cell, Cell],
    slopes: torch.Tensor,
    *places: torch.Tensor,
) -> torch.Tensor | None:
    """Write k and v to the caches, and attend up to where these tokens stand.

    Args:
        kernel: one of the attentions of `kernels.py`.
        qkv: each `(*mesh, tokens, heads, head_dim)`.
        cells: caches `(*mesh, batch, heads, sequence_length, head_dim)`.
        slopes: `(*mesh, heads)`.
        places: positions and, where the kernel asks for it, the row of the caches; used where they
            are, so that a CUDA graph can hold it.

    Returns:
        Like q; None where the kernel does not do it.
    """
    mesh = _mesh(lead, *qkv[1:], *(cell.tensor for cell in cells))
    one = all(size == 1 for place in places for size in place.shape[:lead])
    if not one or _mesh(lead, qkv[1], qkv[0], slopes, *(cell.tensor for cell in cells)) != mesh:
        return None  # caches hold no more than k and v ask for
    own = _caches(mesh, [cell.writable(mesh) for cell in cells])
    if own is None:
        return None
    q, k, v = (by_replica(mesh, t) for t in qkv)
    at = [move(place.flatten(), q.device) for place in places]
    done = kernel((q, k, v), (own[0], own[1]), by_replica(mesh, slopes), *at)
    return None if done is None else done.reshape(*mesh, *qkv[0].shape[lead:])


def _mesh(lead: int, *tensors: torch.Tensor) -> tuple[int, ...]:
    return tuple(broadcast_shapes(*(t.shape[:lead] for t in tensors)))


def _caches(mesh: tuple[int, ...], caches: list[torch.Tensor]) -> list[torch.Tensor] | None:
    """`(replicas, ...)` each, where they lie; None where that is no tensor."""
    lead = len(mesh)
    own = [without_mesh(lead, t) for t in caches if t.shape[:lead] == mesh]
    found = [t for t in own if t is not None]
    return found if len(found) == len(caches) else None
