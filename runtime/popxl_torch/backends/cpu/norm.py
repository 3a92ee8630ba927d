"""Layer norm of rows that are whole, or whose parts lie along a mesh axis."""

from __future__ import annotations

import torch

from popxl_torch.backends.cpu.constants import FLOATS, MESH_AXES
from popxl_torch.backends.cpu.instructions import NORM
from popxl_torch.backends.cpu.layout import (
    apart,
    is_packed,
    joint_mesh,
    mesh_sizes,
    rows_of,
    type_of,
)
from popxl_torch.backends.cpu.library import Run
from popxl_torch.backends.specs import NormSpec


def norm(
    run: Run, spec: NormSpec, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor | None:
    """As `BackEnd.norm` has it."""
    lead, size, inner = spec.lead, x.shape[-1], x.shape[spec.lead : -1]
    rows = inner.numel()
    if not _fits(lead, x, weight, bias) or not rows * size:
        return None
    flat = rows_of(x, lead)
    mesh = list(joint_mesh(lead, flat, weight))
    axis, segments = spec.parts or (None, 1)
    if axis is not None:
        mesh[axis] = segments
    result = torch.empty((*mesh, rows, size), dtype=x.dtype)
    outer = [1 if i == axis else n for i, n in enumerate(mesh)]
    x_mesh, x_segment = apart(flat, lead, axis)
    weight_mesh, weight_segment = apart(weight, lead, axis)
    out_mesh, out_segment = apart(result, lead, axis)
    run(
        NORM,
        result,
        x=flat,
        weight=weight,
        bias=bias,
        out=result,
        x_type=type_of(x),
        weight_type=type_of(weight),
        rows=rows,
        size=size,
        segments=segments,
        epsilon=spec.epsilon,
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
