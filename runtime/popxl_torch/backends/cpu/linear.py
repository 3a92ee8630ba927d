"""Products of few rows with a weight that is read once, and what follows them."""

from __future__ import annotations

from typing import Any

import torch
from popxl_formats.groups import PER_WORD

from popxl_torch.backends.cpu.constants import (
    FEW_ROWS,
    FLOATS,
    MESH_AXES,
    NUMBERED_ACTIVATIONS,
    TYPES,
)
from popxl_torch.backends.cpu.instructions import DECOMPRESS, FINISH, LINEAR
from popxl_torch.backends.cpu.layout import (
    apart,
    is_packed,
    joint_mesh,
    mesh_sizes,
    mesh_strides,
    type_of,
    types,
)
from popxl_torch.backends.cpu.library import Library
from popxl_torch.backends.specs import StoredWeight


def linear(
    native: Library,
    lead: int,
    x: torch.Tensor,
    weight: StoredWeight,
    dtype: torch.dtype,
    *,
    summed: int | None = None,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """`activation(x @ weight + bias) + residual`, with sums in float32.

    Args:
        lead: the number of mesh axes in front of every tensor.
        x: `(*mesh, ..., in)`.
        dtype: of the result.
        summed: a mesh axis that products are summed over; of size 1 in the result.
        bias: `(*mesh, outputs)`.
        activation: "gelu", "geluerf" or None.
        residual: like the result.

    Returns:
        `(*mesh, ..., outputs)`; None where these kernels do not do it. A row's result does not
        depend, to the bit, on how many other rows there are.
    """
    size, outputs, group = weight.sizes()
    inner = x.shape[lead:-1]
    rows = inner.numel()
    if not rows or not size or not _known(x, weight, bias, residual, dtype, lead):
        return None
    if rows > FEW_ROWS and not _takes_many_rows(native, x, weight, summed):
        return None
    flat = x.reshape(*x.shape[:lead], rows, size)
    if not is_packed(flat):
        flat = flat.contiguous()
    whole = list(joint_mesh(lead, flat, weight.tensor, *weight.scales()))
    segments = 1
    if summed is not None:
        segments, whole[summed] = whole[summed], 1
    extra = joint_mesh(lead, *added) if (added := _given(bias, residual)) else whole
    mesh = tuple(map(max, whole, extra))
    if summed is not None and mesh[summed] != 1:
        return None
    result = torch.empty((*mesh, rows, outputs), dtype=dtype)
    more = None if residual is None else _rows_of(residual, lead, rows, outputs)
    x_mesh, x_segment = apart(mesh_strides(flat, lead), lead, summed)
    w_mesh, w_segment = apart(mesh_strides(weight.tensor, lead), lead, summed)
    scale_mesh, scale_segment = apart(mesh_strides(weight.scale, lead), lead, summed)
    w_output, w_input = weight.strides()
    native.run(
        LINEAR,
        result,
        x=flat,
        w=weight.tensor,
        scale=weight.scale,
        offset=weight.offset,
        bias=bias,
        residual=more,
        out=result,
        x_type=TYPES[flat.dtype],
        w_type=TYPES[weight.tensor.dtype],
        scale_type=type_of(weight.scale),
        bias_type=type_of(bias),
        residual_type=type_of(more),
        out_type=TYPES[dtype],
        activation=NUMBERED_ACTIVATIONS.index(activation),
        rows=rows,
        inputs=size,
        outputs=outputs,
        segments=segments,
        group=group,
        mesh=mesh_sizes(mesh),
        x_mesh=x_mesh,
        x_segment=x_segment,
        x_row=flat.stride(-2),
        w_mesh=w_mesh,
        w_segment=w_segment,
        w_output=w_output,
        w_input=w_input,
        scale_mesh=scale_mesh,
        scale_segment=scale_segment,
        scale_output=weight.scale_stride(),
        **_added(lead, bias, more, result),
    )
    return result.reshape(*mesh, *inner, outputs)


def finish(
    native: Library,
    lead: int,
    x: torch.Tensor,
    dtype: torch.dtype,
    *,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """`activation(x + bias) + residual` in `dtype`, in one pass; the arguments as for `linear`.

    Returns:
        `(*mesh, ..., outputs)`; None where this kernel does not do it.
    """
    inner, outputs = x.shape[lead:-1], x.shape[-1]
    rows = inner.numel()
    added = _given(bias, residual)
    if (
        lead > MESH_AXES
        or not rows * outputs
        or any(t.dtype not in FLOATS or t.device.type != "cpu" for t in (x, *added))
        or dtype not in FLOATS
        or (bias is not None and (bias.ndim != lead + 1 or not is_packed(bias)))
    ):
        return None
    flat = _rows_of(x, lead, rows, outputs)
    more = None if residual is None else _rows_of(residual, lead, rows, outputs)
    mesh = joint_mesh(lead, x, *added)
    result = torch.empty((*mesh, rows, outputs), dtype=dtype)
    native.run(
        FINISH,
        result,
        x=flat,
        bias=bias,
        residual=more,
        out=result,
        **types(x=flat, bias=bias, residual=more, out=result),
        activation=NUMBERED_ACTIVATIONS.index(activation),
        rows=rows,
        outputs=outputs,
        mesh=mesh_sizes(mesh),
        x_mesh=mesh_strides(flat, lead),
        x_row=flat.stride(-2),
        **_added(lead, bias, more, result),
    )
    return result.reshape(*mesh, *inner, outputs)


def decompressed(native: Library, weight: StoredWeight, dtype: torch.dtype) -> torch.Tensor | None:
    """A weight of groups as floats, `(*mesh, in, outputs)`, its bytes as `(*mesh, outputs, in)`.

    Returns:
        None where this kernel does not do it.
    """
    words, scale, offset = weight.tensor, weight.scale, weight.offset
    assert scale is not None and offset is not None
    fits = scale.shape[:-1] == offset.shape[:-1] == words.shape[:-1] and scale.dtype == offset.dtype
    if not fits or scale.dtype not in FLOATS or dtype not in FLOATS or words.device.type != "cpu":
        return None
    words, scale, offset = (t.contiguous() for t in (words, scale, offset))
    group = words.shape[-1] * PER_WORD
    result = torch.empty((*words.shape[:-2], words.shape[-2] * group), dtype=dtype)
    native.run(
        DECOMPRESS,
        result,
        words=words,
        scale=scale,
        offset=offset,
        out=result,
        **types(scale=scale, out=result),
        groups=scale.numel(),
        group=group,
    )
    return result.transpose(-1, -2)


def _known(
    x: torch.Tensor,
    weight: StoredWeight,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    dtype: torch.dtype,
    lead: int,
) -> bool:
    floats = [t.dtype for t in (x, bias, residual, *weight.scales()) if t is not None]
    kinds = (torch.uint16,) if weight.grouped else (*FLOATS, torch.int8)
    return (
        lead <= MESH_AXES
        and x.device.type == "cpu"
        and all(t in FLOATS for t in (*floats, dtype))
        and weight.tensor.dtype in kinds
        and (weight.tensor.dtype == torch.int8) == (weight.scale is not None and not weight.grouped)
        and (bias is None or (bias.ndim == lead + 1 and is_packed(bias)))
        and weight.fits()
    )


def _takes_many_rows(
    native: Library, x: torch.Tensor, weight: StoredWeight, summed: int | None
) -> bool:
    """Whether the kernel of many rows takes these: of int8, one scale a channel."""
    scales_of_shards = (
        summed is not None and weight.scale is not None and weight.scale.shape[summed] > 1
    )
    return (
        weight.tensor.nbytes <= native.many_rows.get(x.dtype, 0)
        and weight.tensor.dtype in (x.dtype, torch.int8, torch.uint16)
        and not (scales_of_shards and weight.tensor.dtype == torch.int8)
    )


def _rows_of(x: torch.Tensor, lead: int, rows: int, outputs: int) -> torch.Tensor:
    flat = x.reshape(*x.shape[:lead], rows, outputs)
    return flat if is_packed(flat) else flat.contiguous()


def _given(*tensors: torch.Tensor | None) -> list[torch.Tensor]:
    return [t for t in tensors if t is not None]


def _added(
    lead: int, bias: torch.Tensor | None, residual: torch.Tensor | None, result: torch.Tensor
) -> dict[str, Any]:
    """How what is added, and the result, lie."""
    return {
        "bias_mesh": mesh_strides(bias, lead),
        "residual_mesh": mesh_strides(residual, lead),
        "residual_row": 0 if residual is None else residual.stride(-2),
        "out_mesh": mesh_strides(result, lead),
        "out_row": result.stride(-2),
    }
