"""Products of few rows with a weight that is read once, and what follows them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from popxl_torch.backends.cpu.library import (
    DECOMPRESS,
    FINISH,
    FLOATS,
    LINEAR,
    TYPES,
    Library,
    is_packed,
    joint_mesh,
    mesh_sizes,
    mesh_strides,
)

FEW_ROWS = 16
"""Rows up to which weights are used where they lie; more are multiplied with panels of them."""

ACTIVATIONS = {None: 0, "gelu": 1, "geluerf": 2}


@dataclass(frozen=True)
class Weight:
    """The weight of a product, `(*mesh, in, outputs)`.

    Attributes:
        tensor: floats or int8 `(*mesh, in, outputs)`, or words of four numbers, uint16
            `(*mesh, outputs, groups, group_size / 4)`.
        scale: of int8 `(*mesh, outputs)`, of words `(*mesh, outputs, groups, 1)`.
        offset: of words, like their scale.
    """

    tensor: torch.Tensor
    scale: torch.Tensor | None = None
    offset: torch.Tensor | None = None

    @property
    def grouped(self) -> bool:
        return self.offset is not None

    def sizes(self) -> tuple[int, int, int]:
        """Inputs, outputs, and elements of a group (0 where there are none)."""
        if self.grouped:
            outputs, groups, words = self.tensor.shape[-3:]
            return groups * words * 4, outputs, words * 4
        return self.tensor.shape[-2], self.tensor.shape[-1], 0

    def fits(self) -> bool:
        """Whether the kernels read a weight that lies like this."""
        if self.grouped:
            assert self.scale is not None and self.offset is not None
            *_, outputs, groups, words = self.tensor.shape
            size = words * 4
            rows = [self.tensor.stride()[-2:], *(t.stride()[-2:-1] for t in self._scales())]
            return (
                size >= 8
                and size & (size - 1) == 0
                and rows == [(words, 1), (1,), (1,)]
                and self.scale.stride() == self.offset.stride()
                and self.scale.dtype == self.offset.dtype
                and self.scale.shape == self.offset.shape
            )
        return 1 in self.strides()

    def strides(self) -> tuple[int, int]:
        """Of outputs and of inputs, in elements; a kernel reads along the one that is 1."""
        if self.grouped:
            return self.tensor.stride(-3), 1
        inputs, outputs = self.tensor.stride()[-2:]
        size, count, _ = self.sizes()
        if inputs == 1 or size == 1:
            return outputs, 1
        return (1 if count == 1 else outputs), inputs

    def _scales(self) -> list[torch.Tensor]:
        return _given(self.scale, self.offset)


def linear(
    native: Library,
    lead: int,
    x: torch.Tensor,
    weight: Weight,
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
    whole = list(joint_mesh(lead, flat, weight.tensor, *weight._scales()))
    segments = 1
    if summed is not None:
        segments, whole[summed] = whole[summed], 1
    extra = joint_mesh(lead, *added) if (added := _given(bias, residual)) else whole
    mesh = tuple(map(max, whole, extra))
    if summed is not None and mesh[summed] != 1:
        return None
    result = torch.empty((*mesh, rows, outputs), dtype=dtype)
    more = None if residual is None else _rows_of(residual, lead, rows, outputs)
    native.run(
        LINEAR,
        result,
        *_pointers(flat, weight, bias, more, result),
        *_types(flat, weight, bias, more, result),
        ACTIVATIONS[activation],
        *(rows, size, outputs, segments, group),
        *mesh_sizes(mesh),
        *_strides(flat, lead, summed),
        flat.stride(-2),
        *_strides(weight.tensor, lead, summed),
        *weight.strides(),
        *_scale_strides(weight, lead, summed),
        *(mesh_strides(bias, lead) if bias is not None else (0, 0, 0)),
        *((*mesh_strides(more, lead), more.stride(-2)) if more is not None else (0, 0, 0, 0)),
        *mesh_strides(result, lead),
        result.stride(-2),
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
        lead > 3
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
    tensors = (flat, bias, more, result)
    native.run(
        FINISH,
        result,
        *(0 if t is None else t.data_ptr() for t in tensors),
        *(0 if t is None else TYPES[t.dtype] for t in tensors),
        *(ACTIVATIONS[activation], rows, outputs),
        *mesh_sizes(mesh),
        *(*mesh_strides(flat, lead), flat.stride(-2)),
        *(mesh_strides(bias, lead) if bias is not None else (0, 0, 0)),
        *((*mesh_strides(more, lead), more.stride(-2)) if more is not None else (0, 0, 0, 0)),
        *(*mesh_strides(result, lead), result.stride(-2)),
    )
    return result.reshape(*mesh, *inner, outputs)


def decompressed(native: Library, weight: Weight, dtype: torch.dtype) -> torch.Tensor | None:
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
    group = words.shape[-1] * 4
    result = torch.empty((*words.shape[:-2], words.shape[-2] * group), dtype=dtype)
    native.run(
        DECOMPRESS,
        result,
        *(t.data_ptr() for t in (words, scale, offset, result)),
        *(TYPES[scale.dtype], TYPES[dtype], scale.numel(), group),
    )
    return result.transpose(-1, -2)


def _known(
    x: torch.Tensor,
    weight: Weight,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    dtype: torch.dtype,
    lead: int,
) -> bool:
    floats = [t.dtype for t in (x, bias, residual, *weight._scales()) if t is not None]
    kinds = (torch.uint16,) if weight.grouped else (*FLOATS, torch.int8)
    return (
        lead <= 3
        and x.device.type == "cpu"
        and all(t in FLOATS for t in (*floats, dtype))
        and weight.tensor.dtype in kinds
        and (weight.tensor.dtype == torch.int8) == (weight.scale is not None and not weight.grouped)
        and (bias is None or (bias.ndim == lead + 1 and is_packed(bias)))
        and weight.fits()
    )


def _takes_many_rows(native: Library, x: torch.Tensor, weight: Weight, summed: int | None) -> bool:
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


def _pointers(
    x: torch.Tensor,
    weight: Weight,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    result: torch.Tensor,
) -> list[int]:
    tensors = (x, weight.tensor, weight.scale, weight.offset, bias, residual, result)
    return [0 if t is None else t.data_ptr() for t in tensors]


def _types(
    x: torch.Tensor,
    weight: Weight,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    result: torch.Tensor,
) -> list[int]:
    tensors = (x, weight.tensor, weight.scale, bias, residual, result)
    return [0 if t is None else TYPES[t.dtype] for t in tensors]


def _strides(tensor: torch.Tensor, lead: int, summed: int | None) -> list[int]:
    """Of the mesh in the result, and of what is summed."""
    strides = mesh_strides(tensor, lead)
    if summed is None:
        return [*strides, 0]
    place = 3 - lead + summed
    segment, strides[place] = strides[place], 0
    return [*strides, segment]


def _scale_strides(weight: Weight, lead: int, summed: int | None) -> list[int]:
    if weight.scale is None:
        return [0] * 5
    output = weight.scale.stride(-3 if weight.grouped else -1)
    return [*_strides(weight.scale, lead, summed), output]
