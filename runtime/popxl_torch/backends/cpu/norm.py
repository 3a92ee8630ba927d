"""Layer norm of rows that are whole, or whose parts lie along a mesh axis."""

from __future__ import annotations

import torch

from popxl_torch.backends.cpu.library import (
    FLOATS,
    NORM,
    TYPES,
    Library,
    is_packed,
    joint_mesh,
    mesh_sizes,
    mesh_strides,
)


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
    strides = [_split(t, lead, axis) for t in (flat, weight, result)]
    native.run(
        NORM,
        result,
        *(t.data_ptr() for t in (flat, weight, bias, result)),
        *(TYPES[x.dtype], TYPES[weight.dtype], rows, size, segments),
        epsilon,
        *mesh_sizes(outer),
        *(*strides[0], flat.stride(-2)),
        *strides[1],
        *(*strides[2], result.stride(-2)),
    )
    return result.reshape(*mesh, *inner, size)


def _fits(lead: int, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> bool:
    return (
        lead <= 3
        and x.device.type == "cpu"
        and x.dtype in FLOATS
        and weight.dtype in FLOATS
        and weight.ndim == bias.ndim == lead + 1
        and (weight.dtype, weight.shape, weight.stride()) == (bias.dtype, bias.shape, bias.stride())
        and is_packed(weight)
    )


def _split(tensor: torch.Tensor, lead: int, axis: int | None) -> list[int]:
    """The strides of the mesh but for the parts' axis, and that one's."""
    strides = mesh_strides(tensor, lead)
    if axis is None:
        return [*strides, 0]
    place = 3 - lead + axis
    segment, strides[place] = strides[place], 0
    return [*strides, segment]
