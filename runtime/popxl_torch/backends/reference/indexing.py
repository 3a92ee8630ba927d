"""Kernels that pick elements or replace some, on torch tensors of shape `(*mesh, *shape)`.

`lead` is the number of mesh axes; indices may differ between replicas.
"""

from __future__ import annotations

import numpy as np
import torch

from popxl_torch.backends.reference.functions import align, same_mesh
from popxl_torch.lowering.placement import together
from popxl_torch.replay.decisions import numbers

SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
"""Types that torch cannot pick from, and what their bits are picked as."""


def gather(
    x: torch.Tensor, indices: torch.Tensor, lead: int, axis: int, zero_out_of_range: bool
) -> torch.Tensor:
    """`x` at `indices` along logical `axis`, which the axes of `indices` replace."""
    if x.dtype in SIGNED:
        picked = gather(x.view(SIGNED[x.dtype]), indices, lead, axis, zero_out_of_range)
        return picked.view(x.dtype)
    size, index_rank, indices = x.shape[lead + axis], indices.ndim - lead, indices.long()
    inside = (indices >= 0) & (indices < size)
    if zero_out_of_range:
        indices = torch.where(inside, indices, 0)
    elif indices.device.type == "cpu" and not inside.all():
        outside = indices[~inside].flatten()[0].item()
        raise IndexError(f"gather: index {outside} is outside the axis of size {size}")
    x, indices, inside = together(x, indices, inside)
    picked = _pick(x.movedim(lead + axis, lead), indices, lead)
    if zero_out_of_range:
        keep = inside.reshape(inside.shape + (1,) * (picked.ndim - inside.ndim))
        picked = torch.where(
            keep, picked, torch.zeros((), dtype=picked.dtype, device=picked.device)
        )
    if not axis:
        return picked
    return picked.movedim(
        tuple(range(lead, lead + index_rank)), tuple(range(lead + axis, lead + axis + index_rank))
    )


def _pick(x: torch.Tensor, indices: torch.Tensor, lead: int) -> torch.Tensor:
    """`x[..., indices]` at axis `lead`, replica by replica."""
    if all(size == 1 for size in indices.shape[:lead]):
        flat = x.index_select(lead, indices.flatten())
        return flat.reshape(x.shape[:lead] + indices.shape[lead:] + x.shape[lead + 1 :])
    grids = []
    for axis in range(lead):
        count = torch.arange(x.shape[axis], device=x.device)
        grids.append(count.reshape((-1,) + (1,) * (indices.ndim - axis - 1)))
    return x[(*grids, indices)]


def scatter(
    x: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, lead: int, axis: int
) -> torch.Tensor:
    """`x` with `values` put at `indices` along `axis`, counted from the end."""
    size, indices = x.shape[axis], indices.long()
    outside = indices[(indices < 0) | (indices >= size)]
    if outside.numel():
        raise IndexError(f"scatter: index {outside[0].item()} is outside the axis of size {size}")
    x, indices, values = same_mesh(lead, x, indices, values)
    return x.scatter(axis, indices, values)


def dynamic_slice(
    x: torch.Tensor,
    index: torch.Tensor,
    lead: int,
    axes: tuple[int, ...],
    sizes: tuple[int, ...],
) -> torch.Tensor:
    """The part of `x` of the given sizes from `index` on; a view where replicas agree on it.

    One on a device is used there, without a view.
    """
    if index.device.type != "cpu" and index.numel() == len(axes):
        return picked_range(x, index.flatten(), axes, sizes)
    starts = numbers(index.reshape(-1, len(axes)))
    if len(starts) == 1:
        return _narrow(x, starts[0], axes, sizes)
    wide, index = same_mesh(lead, x, index.reshape(*index.shape[:lead], len(axes)))
    each = zip(wide.flatten(0, lead - 1), numbers(index.reshape(-1, len(axes))), strict=True)
    parts = torch.stack([_narrow(part, start, axes, sizes) for part, start in each])
    return parts.reshape(*wide.shape[:lead], *parts.shape[1:])


def picked_range(
    x: torch.Tensor, starts: torch.Tensor, axes: tuple[int, ...], sizes: tuple[int, ...]
) -> torch.Tensor:
    """The elements of `dynamic_slice`; Python need not know the starts, `(len(axes),)`."""
    if x.dtype in SIGNED:
        return picked_range(x.view(SIGNED[x.dtype]), starts, axes, sizes).view(x.dtype)
    for start, axis, size in zip(starts.long().split(1), axes, sizes, strict=True):
        first = start.clamp(0, x.shape[axis] - size)
        x = x.index_select(axis, first + torch.arange(size, device=x.device))
    return x


def put_at(
    target: torch.Tensor,
    index: torch.Tensor,
    update: torch.Tensor,
    lead: int,
    axes: tuple[int, ...],
    sizes: tuple[int, ...],
) -> None:
    """Replace the part of `target` that begins at `index`, in its memory."""
    starts = numbers(index.reshape(-1, len(axes)))
    if len(starts) == 1:
        _narrow(target, starts[0], axes, sizes).copy_(update)
        return
    mesh = target.shape[:lead]
    index = index.reshape(*index.shape[:lead], len(axes)).expand(*mesh, len(axes))
    update = update.expand(*mesh, *update.shape[lead:])
    for at in np.ndindex(*mesh):
        _narrow(target[at], numbers(index[at]), axes, sizes).copy_(update[at])


def _narrow(
    x: torch.Tensor, starts: list[int], axes: tuple[int, ...], sizes: tuple[int, ...]
) -> torch.Tensor:
    for start, axis, size in zip(starts, axes, sizes, strict=True):
        x = x.narrow(axis, min(max(start, 0), x.shape[axis] - size), size)
    return x


def onehot(
    x: torch.Tensor, values: torch.Tensor, lead: int, num_classes: int, axis: int
) -> torch.Tensor:
    """`values[1]` where the new axis' index is the element of `x`, else `values[0]`."""
    classes = torch.arange(num_classes, device=x.device)
    classes = classes.reshape((-1,) + (1,) * (x.ndim - lead - axis))
    hit = x.long().unsqueeze(lead + axis) == classes
    off, on = (align(values[..., i], lead, hit.ndim - lead) for i in (0, 1))
    return torch.where(hit, on, off)
