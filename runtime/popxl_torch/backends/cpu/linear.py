"""Products of few rows with a weight that is read once, and what follows them."""

from __future__ import annotations

from typing import Any

import torch
from popxl_shared.groups import PER_WORD
from popxl_shared.limits import FEW_ROWS, SOME_ROWS

from popxl_torch.backends.cpu.constants import (
    FLOATS,
    MESH_AXES,
    NUMBERED_ACTIVATIONS,
)
from popxl_torch.backends.cpu.instructions import DECOMPRESS, FINISH, LINEAR
from popxl_torch.backends.cpu.layout import (
    apart,
    given,
    is_packed,
    joint_mesh,
    mesh_sizes,
    mesh_strides,
    type_of,
    types,
)
from popxl_torch.backends.cpu.library import Library
from popxl_torch.backends.specs import LinearSpec, StoredWeight


def linear(
    native: Library,
    spec: LinearSpec,
    x: torch.Tensor,
    weight: StoredWeight,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """As `BackEnd.linear` has it; None where these kernels do not do it.

    A row's result does not depend, to the bit, on how many other rows there are, up to
    `SOME_ROWS`, and beyond them.
    """
    lead, summed = spec.lead, spec.summed
    size, outputs, group = weight.sizes()
    inner = x.shape[lead:-1]
    rows, added = inner.numel(), given(bias, residual, gate)
    if not rows or not size or not _known(spec, x, weight, bias, added):
        return None
    if rows > FEW_ROWS and not _takes_many_rows(native, x, weight, summed, rows):
        return None
    flat = _rows_of(x, lead)
    whole = list(joint_mesh(lead, flat, weight.tensor, *weight.scales()))
    segments = 1
    if summed is not None:
        segments, whole[summed] = whole[summed], 1
    mesh = tuple(map(max, whole, joint_mesh(lead, *added))) if added else tuple(whole)
    if summed is not None and mesh[summed] != 1:
        return None
    result = torch.empty((*mesh, rows, outputs), dtype=spec.dtype)
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
        x_type=type_of(flat),
        w_type=type_of(weight.tensor),
        scale_type=type_of(weight.scale),
        rows=rows,
        inputs=size,
        outputs=outputs,
        segments=segments,
        group=group,
        x_mesh=x_mesh,
        x_segment=x_segment,
        w_mesh=w_mesh,
        w_segment=w_segment,
        scale_mesh=scale_mesh,
        scale_segment=scale_segment,
        x_row=flat.stride(-2),
        w_output=w_output,
        w_input=w_input,
        scale_output=weight.scale_stride(),
        **_epilogue(spec, result, bias, residual, gate),
    )
    return result.reshape(*mesh, *inner, outputs)


def finish(
    native: Library,
    spec: LinearSpec,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """As `BackEnd.epilogue` has it, in one pass; None where this kernel does not do it."""
    lead, inner, outputs = spec.lead, x.shape[spec.lead : -1], x.shape[-1]
    rows, added = inner.numel(), given(bias, residual, gate)
    if not rows * outputs or not _follows(spec, bias, [x, *added]):
        return None
    flat = _rows_of(x, lead)
    mesh = joint_mesh(lead, x, *added)
    result = torch.empty((*mesh, rows, outputs), dtype=spec.dtype)
    native.run(
        FINISH,
        result,
        x=flat,
        x_type=type_of(flat),
        rows=rows,
        outputs=outputs,
        x_mesh=mesh_strides(flat, lead),
        x_row=flat.stride(-2),
        **_epilogue(spec, result, bias, residual, gate),
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
    spec: LinearSpec,
    x: torch.Tensor,
    weight: StoredWeight,
    bias: torch.Tensor | None,
    added: list[torch.Tensor],
) -> bool:
    kinds = (torch.uint16,) if weight.grouped else (*FLOATS, torch.int8)
    return (
        _follows(spec, bias, [x, *added, *weight.scales()])
        and weight.tensor.dtype in kinds
        and (weight.tensor.dtype == torch.int8) == (weight.scale is not None and not weight.grouped)
        and weight.fits()
    )


def _follows(spec: LinearSpec, bias: torch.Tensor | None, floats: list[torch.Tensor]) -> bool:
    """Whether the kernels do what follows a product, and know the types of these tensors of it."""
    return (
        spec.lead <= MESH_AXES
        and spec.dtype in FLOATS
        and floats[0].device.type == "cpu"
        and all(t.dtype in FLOATS for t in floats)
        and (bias is None or (bias.ndim == spec.lead + 1 and is_packed(bias)))
    )


def _takes_many_rows(
    native: Library, x: torch.Tensor, weight: StoredWeight, summed: int | None, rows: int
) -> bool:
    """Whether these are not left to torch: many rows of int8 are where shards have own scales."""
    scales_of_shards = (
        summed is not None and weight.scale is not None and weight.scale.shape[summed] > 1
    )
    in_place = rows <= SOME_ROWS and weight.strides()[1] == 1
    return (
        weight.tensor.nbytes <= native.many_rows.get(x.dtype, 0)
        and weight.tensor.dtype in (x.dtype, torch.int8, torch.uint16)
        and (in_place or not (scales_of_shards and weight.tensor.dtype == torch.int8))
    )


def _rows_of(x: torch.Tensor, lead: int) -> torch.Tensor:
    """`(*mesh, ..., n)` as `(*mesh, rows, n)`, elements of a row side by side."""
    flat = x.reshape(*x.shape[:lead], x.shape[lead:-1].numel(), x.shape[-1])
    return flat if is_packed(flat) else flat.contiguous()


def _epilogue(
    spec: LinearSpec,
    result: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    gate: torch.Tensor | None,
) -> dict[str, Any]:
    """The fields of what follows a product, for a result `(*mesh, rows, outputs)`."""
    lead = spec.lead
    gate = None if gate is None else _rows_of(gate, lead)
    residual = None if residual is None else _rows_of(residual, lead)
    return {
        "bias": bias,
        "gate": gate,
        "residual": residual,
        "out": result,
        "bias_type": type_of(bias),
        "gate_type": type_of(gate),
        "residual_type": type_of(residual),
        "out_type": type_of(result),
        "bias_mesh": mesh_strides(bias, lead),
        "gate_mesh": mesh_strides(gate, lead),
        "residual_mesh": mesh_strides(residual, lead),
        "out_mesh": mesh_strides(result, lead),
        "gate_row": 0 if gate is None else gate.stride(-2),
        "residual_row": 0 if residual is None else residual.stride(-2),
        "out_row": result.stride(-2),
        "activation": NUMBERED_ACTIVATIONS.index(spec.activation),
        "mesh": mesh_sizes(result.shape[:lead]),
    }
