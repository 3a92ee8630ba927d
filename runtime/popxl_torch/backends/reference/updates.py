"""Kernels that add up at indices or over runs, on torch tensors of shape `(*mesh, *shape)`.

Floats are added up in float32 at least, and rounded to their own type once.
"""

from __future__ import annotations

import math

import torch

from popxl_torch.backends.reference.functions import HALF, same_mesh

REDUCE = {"min": "amin", "max": "amax"}
"""What torch calls a reduction."""

Factor = torch.Tensor | float | None


def accumulate(t: torch.Tensor, x: torch.Tensor, factor: Factor, how: str) -> torch.Tensor:
    """What an accumulator that holds `t` holds after `x`; see `ops.var_updates`."""
    if factor is None and not t.is_floating_point():
        return t + x.to(t.dtype)
    dtype = _wide(t)
    value, x = t.to(dtype), x.to(dtype)
    f = factor.to(dtype) if isinstance(factor, torch.Tensor) else factor
    if how.endswith("square"):
        x = x * x
    if f is None:
        made = value + x
    elif how == "mean":
        made = value * (f / (f + 1)) + x * (1 / (f + 1))
    elif how.startswith("moving_average"):
        made = value * f + x * (1 - f)
    else:
        made = value + x * f
    return made.to(t.dtype)


def scale(t: torch.Tensor, factor: torch.Tensor | float) -> torch.Tensor:
    """`factor * t`; zeros for the number 0, whatever `t` holds."""
    if not isinstance(factor, torch.Tensor) and factor == 0:
        return torch.zeros_like(t)
    dtype = _wide(t)
    by = factor.to(dtype) if isinstance(factor, torch.Tensor) else factor
    return (t.to(dtype) * by).to(t.dtype)


def _wide(t: torch.Tensor) -> torch.dtype:
    if t.dtype in HALF:
        return torch.float32
    return t.dtype if t.is_floating_point() else torch.float64


def sparse_accumulate(
    t: torch.Tensor,
    x: torch.Tensor,
    indices: torch.Tensor,
    lead: int,
    axis: int,
    factor: Factor,
) -> torch.Tensor:
    """`t` with `factor * x` added along logical `axis` at `indices`.

    Args:
        factor: a tensor is `(*mesh)`.
    """
    size, shape = t.shape[lead + axis], t.shape[lead:]
    _check_indices("sparse_accumulate_", indices, size)
    before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    dtype = _wide(t) if factor is not None or t.is_floating_point() else t.dtype
    value = t.to(dtype).reshape(*t.shape[:lead], before, size, after)
    added = x.to(dtype).reshape(*x.shape[:lead], before, -1, after)
    where = indices.long().reshape(*indices.shape[:lead], 1, -1, 1)
    if isinstance(factor, torch.Tensor):
        added = added * factor.to(dtype).reshape(*factor.shape, 1, 1, 1)
    elif factor is not None:
        added = added * factor
    value, added, where = same_mesh(lead, value, added, where)
    made = value.scatter_add(-2, where.expand_as(added), added)
    return made.reshape(*made.shape[:lead], *shape).to(t.dtype)


def scatter_reduce(
    data: torch.Tensor,
    indices: torch.Tensor,
    *initial: torch.Tensor,
    lead: int,
    axis: int,
    shape: tuple[int, ...],
    reduction: str,
    broadcast: bool,
) -> torch.Tensor:
    """The reduction of `data` at `indices` along `axis`, counted from the end.

    Args:
        indices: with `broadcast`, broadcast to the shape of `data`; else each at its own place.
        initial: what takes part, if given; `shape` is that of the result.
    """
    _check_indices("scatter_reduce", indices, shape[axis])
    dtype = torch.float32 if data.dtype in HALF else data.dtype
    if initial:
        start = initial[0].to(dtype)
    else:
        start = torch.zeros((1,) * lead + shape, dtype=dtype, device=data.device)
    start, wide, where = same_mesh(lead, start, data.to(dtype), indices.long())
    if broadcast:
        where = where.expand_as(wide)
    if reduction == "none":
        made = start.scatter(axis, where, wide)
    elif reduction == "sum":
        made = start.scatter_add(axis, where, wide)
    else:
        made = start.scatter_reduce(
            axis, where, wide, REDUCE[reduction], include_self=bool(initial)
        )
    return made.to(data.dtype)


def _check_indices(kind: str, indices: torch.Tensor, size: int) -> None:
    """On the CPU: a device is not waited for.

    Raises:
        IndexError: where an index is outside the axis.
    """
    if indices.device.type != "cpu":
        return
    outside = (indices < 0) | (indices >= size)
    if outside.any():
        first = indices[outside].flatten()[0].item()
        raise IndexError(f"{kind}: index {first} is outside the axis of size {size}")
