"""What ops do, on torch tensors of shape `(*mesh, *shape)`.

`lead` is the number of mesh axes. Axes are counted from the end wherever possible, so that most
kernels need not know of the mesh.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom

HALF = (torch.float16, torch.bfloat16)

FEW_ROWS = 4
"""Rows up to which float16 matmuls run in float16 on a CPU: they wait for memory, not arithmetic."""


def align(x: torch.Tensor, lead: int, missing: int) -> torch.Tensor:
    """Insert `missing` axes of size 1 behind the mesh, for broadcasting against a higher rank."""
    return x.reshape(x.shape[:lead] + (1,) * missing + x.shape[lead:])


def same_mesh(lead: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors expanded to one size along every mesh axis."""
    if not lead:
        return tensors
    mesh = torch.broadcast_shapes(*(t.shape[:lead] for t in tensors))
    return tuple(t.expand(*mesh, *t.shape[lead:]) for t in tensors)


def clone(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype)


# --- shape ---


def reshape(x: torch.Tensor, lead: int, shape: tuple[int, ...]) -> torch.Tensor:
    return x.reshape(x.shape[:lead] + tuple(shape))


def permute(x: torch.Tensor, lead: int, permutation: tuple[int, ...]) -> torch.Tensor:
    return x.permute(*range(lead), *(lead + p for p in permutation))


def take_range(x: torch.Tensor, axis: int, start: int, step: int, length: int) -> torch.Tensor:
    """`length` elements from `start` on; torch has no negative steps, so these reverse a part."""
    if step < 0 and length:
        first = start + step * (length - 1)
        return take_range(x, axis, first, -step, length).flip(axis)
    if step == 1 or length <= 1:
        return x.narrow(axis, min(start, x.shape[axis]), length)
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, start + step * (length - 1) + 1, step)
    return x[tuple(index)]


def concat(xs: list[torch.Tensor], lead: int, axis: int) -> torch.Tensor:
    return torch.cat(same_mesh(lead, *xs), dim=axis)


# --- elementwise ---


def scaled_add(x: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a * x + b * y


def swish(x: torch.Tensor) -> torch.Tensor:
    return F.silu(x)


def increment_mod(x: torch.Tensor, increment: float, modulus: float) -> torch.Tensor:
    return torch.remainder(x + increment, modulus)


def maximum(*xs: torch.Tensor) -> torch.Tensor:
    result = xs[0]
    for x in xs[1:]:
        result = torch.maximum(result, x)
    return result


# --- reductions ---


def reduce_sum(x: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    if x.dtype in HALF:
        return x.sum(dim, keepdim, dtype=torch.float32).to(x.dtype)
    return x.sum(dim, keepdim, dtype=x.dtype)


def reduce_mean(x: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    accumulate = x.dtype if x.dtype == torch.float64 else torch.float32
    return x.mean(dim, keepdim, dtype=accumulate).to(x.dtype)


def reduce_prod(x: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    accumulate = torch.float32 if x.dtype in HALF else x.dtype
    result = x.to(accumulate)
    for axis in sorted(dim, reverse=True):
        result = result.prod(axis, keepdim=True)
    return (result if keepdim else result.squeeze(dim)).to(x.dtype)


def reduce_sumsquare(x: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    wide = x.float() if x.dtype in HALF else x
    return wide.square().sum(dim, keepdim, dtype=wide.dtype).to(x.dtype)


def reduce_logsumexp(x: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    wide = x.float() if x.dtype in HALF else x
    return wide.logsumexp(dim, keepdim).to(x.dtype)


def argmax(x: torch.Tensor, dim: int, keepdim: bool) -> torch.Tensor:
    return x.argmax(dim, keepdim).to(torch.int32)


def argmin(x: torch.Tensor, dim: int, keepdim: bool) -> torch.Tensor:
    return x.argmin(dim, keepdim).to(torch.int32)


def topk(
    x: torch.Tensor, k: int, dim: int, largest: bool, sorted: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = x.topk(k, dim, largest, sorted)
    return values, indices.to(torch.int32)


def cumsum(x: torch.Tensor, dim: int) -> torch.Tensor:
    if x.dtype in HALF:
        return x.cumsum(dim, dtype=torch.float32).to(x.dtype)
    return x.cumsum(dim, dtype=x.dtype)


def softmax(x: torch.Tensor, dim: int) -> torch.Tensor:
    if x.dtype in HALF:
        return torch.softmax(x, dim, dtype=torch.float32).to(x.dtype)
    return torch.softmax(x, dim)


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, lead: int, eps: float
) -> torch.Tensor:
    missing = x.ndim - lead - 1
    normed = F.layer_norm(x.float() if x.dtype in HALF else x, x.shape[-1:], None, None, eps)
    weight, bias = align(weight, lead, missing), align(bias, lead, missing)
    return (normed * weight.to(normed.dtype) + bias.to(normed.dtype)).to(x.dtype)


# --- matmul ---


def matmul(x: torch.Tensor, w: torch.Tensor, lead: int, dtype: torch.dtype) -> torch.Tensor:
    """`(*mesh, ..., n, k) @ (*mesh, ..., k, m)` with the result in `dtype`; both of rank 2 or more."""
    compute = _matmul_type(x, w, lead, dtype)
    if x.dtype != compute:
        x, w = x.to(compute), w.to(compute)
    result = _mesh_matmul(x, w, lead) if lead else torch.matmul(x, w)
    return result if result.dtype == dtype else result.to(dtype)


def _matmul_type(x: torch.Tensor, w: torch.Tensor, lead: int, dtype: torch.dtype) -> torch.dtype:
    """The type to compute in: half only where the result is half and the device is quick at it."""
    if x.dtype not in HALF or dtype in HALF and x.dtype == torch.bfloat16:
        return x.dtype
    if dtype not in HALF:
        return torch.float32
    rows = x.shape[-2] if w.ndim - lead > 2 else x.shape[lead:-1].numel()
    return torch.float32 if x.device.type == "cpu" and rows > FEW_ROWS else x.dtype


def _mesh_matmul(x: torch.Tensor, w: torch.Tensor, lead: int) -> torch.Tensor:
    x_rank, w_rank = x.ndim - lead, w.ndim - lead
    if w_rank > 2:
        rank = max(x_rank, w_rank)
        return torch.matmul(align(x, lead, rank - x_rank), align(w, lead, rank - w_rank))
    inner = x.shape[lead:-1]
    rows = _rows_matmul(x.reshape(*x.shape[:lead], -1, x.shape[-1]), w, lead)
    return rows.reshape(*rows.shape[:lead], *inner, w.shape[-1])


def _rows_matmul(x: torch.Tensor, w: torch.Tensor, lead: int) -> torch.Tensor:
    """`(*mesh, n, k) @ (*mesh, k, m)`; where `w` is the same along a mesh axis, that axis is rows."""
    shared = [i for i in range(lead) if w.shape[i] == 1]
    varying = [i for i in range(lead) if w.shape[i] > 1]
    ahead = x.permute(*varying, *shared, lead, lead + 1)
    folded = ahead.reshape(*ahead.shape[: len(varying)], -1, x.shape[-1])
    weights = w.reshape(*(w.shape[i] for i in varying), *w.shape[lead:])
    product = torch.matmul(folded, weights)
    product = product.reshape(
        *product.shape[: len(varying)], *(x.shape[i] for i in shared), x.shape[-2], w.shape[-1]
    )
    back = sorted(range(lead), key=lambda i: (varying + shared)[i])
    return product.permute(*back, lead, lead + 1)


# --- indexing ---


def gather(
    x: torch.Tensor, indices: torch.Tensor, lead: int, axis: int, zero_out_of_range: bool
) -> torch.Tensor:
    """`x` at `indices` along logical `axis`, which the axes of `indices` replace."""
    size, index_rank = x.shape[lead + axis], indices.ndim - lead
    inside = (indices >= 0) & (indices < size)
    if zero_out_of_range:
        indices = torch.where(inside, indices, 0)
    elif not inside.all():
        outside = indices[~inside].flatten()[0].item()
        raise IndexError(f"gather: index {outside} is outside the axis of size {size}")
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
    size = x.shape[axis]
    if bool(((indices < 0) | (indices >= size)).any()):
        raise IndexError(f"scatter: an index is outside the axis of size {size}")
    x, indices, values = same_mesh(lead, x, indices, values)
    return x.scatter(axis, indices.long(), values)


def dynamic_slice(
    x: torch.Tensor,
    index: torch.Tensor,
    lead: int,
    axes: tuple[int, ...],
    sizes: tuple[int, ...],
) -> torch.Tensor:
    starts = index.reshape(-1, len(axes)).tolist()
    if len(starts) == 1:
        return _narrow(x, starts[0], axes, sizes)
    wide, index = same_mesh(lead, x, index.reshape(*index.shape[:lead], len(axes)))
    each = zip(wide.flatten(0, lead - 1), index.reshape(-1, len(axes)).tolist(), strict=True)
    parts = torch.stack([_narrow(part, start, axes, sizes) for part, start in each])
    return parts.reshape(*wide.shape[:lead], *parts.shape[1:])


def dynamic_update(
    x: torch.Tensor,
    index: torch.Tensor,
    update: torch.Tensor,
    lead: int,
    axes: tuple[int, ...],
    sizes: tuple[int, ...],
) -> torch.Tensor:
    """A copy of `x` with the part replaced."""
    mesh = torch.broadcast_shapes(x.shape[:lead], index.shape[:lead], update.shape[:lead])
    wide = x.expand(*mesh, *x.shape[lead:]).clone()
    _put(wide, index, update, lead, axes, sizes)
    return wide


def update_cell(
    cell: Any,
    index: torch.Tensor,
    update: torch.Tensor,
    lead: int,
    axes: tuple[int, ...],
    sizes: tuple[int, ...],
) -> None:
    """`dynamic_update` in the memory of a cell."""
    target = cell.writable(index.shape[:lead], update.shape[:lead])
    _put(target, index, update, lead, axes, sizes)


def _put(
    target: torch.Tensor,
    index: torch.Tensor,
    update: torch.Tensor,
    lead: int,
    axes: tuple[int, ...],
    sizes: tuple[int, ...],
) -> None:
    starts = index.reshape(-1, len(axes)).tolist()
    if len(starts) == 1:
        _narrow(target, starts[0], axes, sizes).copy_(update)
        return
    mesh = target.shape[:lead]
    index = index.reshape(*index.shape[:lead], len(axes)).expand(*mesh, len(axes))
    update = update.expand(*mesh, *update.shape[lead:])
    for at in np.ndindex(*mesh):
        _narrow(target[at], index[at].tolist(), axes, sizes).copy_(update[at])


def _narrow(
    x: torch.Tensor, starts: list[int], axes: tuple[int, ...], sizes: tuple[int, ...]
) -> torch.Tensor:
    for start, axis, size in zip(starts, axes, sizes, strict=True):
        x = x.narrow(axis, min(max(start, 0), x.shape[axis] - size), size)
    return x


def onehot(
    x: torch.Tensor, values: torch.Tensor, lead: int, num_classes: int, axis: int
) -> torch.Tensor:
    classes = torch.arange(num_classes, device=x.device, dtype=x.dtype)
    classes = classes.reshape((-1,) + (1,) * (x.ndim - lead - axis))
    hit = x.unsqueeze(lead + axis) == classes
    off, on = (align(values[..., i], lead, hit.ndim - lead) for i in (0, 1))
    return torch.where(hit, on, off)


# --- host ---


def print_tensor(
    x: torch.Tensor,
    title: str,
    enabled: bool,
    style: dict[str, Any],
    float_format: str,
    separator: str,
    brackets: tuple[str, str],
) -> torch.Tensor:
    """Print to standard error, so that a program's output stays its own."""
    if enabled:
        array = x.detach().cpu().to(torch.float32 if x.dtype in HALF else x.dtype).numpy()
        formatter = {"scientific": {"float_kind": lambda v: f"{v:.{style['precision']}e}"}}.get(
            float_format
        )
        fixed = float_format == "fixed"
        text = np.array2string(
            array, separator=separator, formatter=formatter, suppress_small=fixed, **style
        )
        text = text.replace("[", brackets[0]).replace("]", brackets[1])
        print(f"{title} {text}", file=sys.stderr)
    return x
