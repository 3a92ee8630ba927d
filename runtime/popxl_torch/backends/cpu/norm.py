"""Layer norm of rows that are whole, or whose parts lie along a mesh axis."""

from __future__ import annotations

import torch

from popxl_torch.backends.cpu.constants import FLOATS, MESH_AXES, TYPES
from popxl_torch.backends.cpu.instructions import NORM
from popxl_torch.backends.cpu.layout import (
    apart,
    is_packed,
    joint_mesh,
    mesh_sizes,
    mesh_strides,
)
from popxl_torch.backends.cpu.library import Library


def norm(
    native: Library,
    lead: int,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    epsilon: float,
    parts: tuple[int, int] | None = None,
) -> torch.Tensor | None:
    """Layer norm of the last dimension, in float32.

    Args:
        lead: the number of mesh axes in front of every tensor.
        x: `(*mesh, ..., size)`.
        weight, bias: `(*mesh, size)`.
        epsilon: added to the variance.
        parts: the mesh axis along which the parts of a row lie, and their number.

    Returns:
        Like `x`; None where this kernel does not do it.
    """
    size, inner = x.shape[-1], x.shape[lead:-1]
    rows = inner.numel()
    if not _fits(lead, x, weight, bias) or not rows * size:
        return None
    flat = x.reshape(*x.shape[:lead], rows, size)
    if not is_packed(flat):
        flat = flat.contiguous()
    mesh = list(joint_mesh(lead, flat, weight))
    axis, segments = parts or (None, 1)
    if axis is not None:
        mesh[axis] = segments
    result = torch.empty((*mesh, rows, size), dtype=x.dtype)
    outer = [1 if i == axis else n for i, n in enumerate(mesh)]
    x_mesh, x_segment = apart(mesh_strides(flat, lead), lead, axis)
    weight_mesh, weight_segment = apart(mesh_strides(weight, lead), lead, axis)
    out_mesh, out_segment = apart(mesh_strides(result, lead), lead, axis)
    native.run(
        NORM,
        result,
        x=flat,
        weight=weight,
        bias=bias,
        out=result,
        x_type=TYPES[x.dtype],
        weight_type=TYPES[weight.dtype],
        rows=rows,
        size=size,
        segments=segments,
        epsilon=epsilon,
        mesh=mesh_sizes(outer),
        x_mesh=x_mesh,
        x_segment=x_segment,
        x_row=flat.stride(-2),
        weight_mesh=weight_mesh,
        weight_segment=weight_segment,
        out_mesh=out_mesh,
        out_segment=out_segment,
        out_row=result.stride(-2),
    )
    return result.reshape(*mesh, *inner, size)


def _fits(lead: int, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> bool:
    return (
        lead <= MESH_AXES
        and x.device.type == "cpu"
        and x.dtype in FLOATS
        and weight.dtype in FLOATS
        and weight.ndim == bias.ndim == lead + 1
        and (weight.dtype, weight.shape, weight.stride()) == (bias.dtype, bias.shape, bias.stride())
        and is_packed(weight)
    )
