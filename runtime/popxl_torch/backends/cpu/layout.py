"""How tensors lie, as fields of instructions say it."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from popxl_torch.backends.cpu.constants import MESH_AXES, TYPES


def type_of(tensor: torch.Tensor | None) -> int:
    """The number of a tensor's type; 0 where there is none."""
    return 0 if tensor is None else TYPES[tensor.dtype]


def mesh_strides(tensor: torch.Tensor | None, lead: int) -> list[int]:
    """The strides of the mesh axes, filled up in front; 0 where a value is held once or missing."""
    if tensor is None or not lead:
        return [0] * MESH_AXES
    strides = [0] * (MESH_AXES - lead)
    for axis in range(lead):
        strides.append(tensor.stride(axis) if tensor.shape[axis] > 1 else 0)
    return strides


def apart(tensor: torch.Tensor | None, lead: int, axis: int | None) -> tuple[list[int], int]:
    """The strides of the mesh axes but for one axis, and that one's."""
    strides, segment = mesh_strides(tensor, lead), 0
    if axis is not None:
        place = MESH_AXES - lead + axis
        segment, strides[place] = strides[place], 0
    return strides, segment


def mesh_sizes(sizes: Iterable[int]) -> list[int]:
    """The sizes of the mesh axes, filled up in front."""
    given = list(sizes)
    return [1] * (MESH_AXES - len(given)) + given


def is_packed(tensor: torch.Tensor) -> bool:
    """Whether the elements of the last axis lie side by side."""
    return tensor.ndim == 0 or tensor.stride(-1) == 1 or tensor.shape[-1] == 1


def given(*tensors: torch.Tensor | None) -> list[torch.Tensor]:
    """The tensors that there are."""
    return [t for t in tensors if t is not None]


def joint_mesh(lead: int, *tensors: torch.Tensor) -> tuple[int, ...]:
    """The sizes of the mesh axes that tensors broadcast to."""
    return tuple(max(t.shape[axis] for t in tensors) for axis in range(lead))


def rows_of(x: torch.Tensor, lead: int) -> torch.Tensor:
    """`(*mesh, ..., n)` as `(*mesh, rows, n)`, elements of a row side by side."""
    flat = x.reshape(*x.shape[:lead], x.shape[lead:-1].numel(), x.shape[-1])
    return flat if is_packed(flat) else flat.contiguous()
