"""How tensors lie, as fields of instructions say it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from popxl_torch.backends.cpu.constants import MESH_AXES, TYPES


def types(**tensors: torch.Tensor | None) -> dict[str, int]:
    """The fields `<name>_type`; 0 where there is no tensor."""
    return {f"{n}_type": 0 if t is None else TYPES[t.dtype] for n, t in tensors.items()}


def mesh_strides(tensor: torch.Tensor | None, lead: int) -> list[int]:
    """The strides of the mesh axes, filled up in front; 0 where a value is held once or missing."""
    strides = [0] * (MESH_AXES - lead)
    for axis in range(lead):
        once = tensor is None or tensor.shape[axis] == 1
        strides.append(0 if once else tensor.stride(axis))  # type: ignore[union-attr]
    return strides


def apart(strides: Sequence[int], lead: int, axis: int | None) -> tuple[list[int], int]:
    """The strides of the mesh but for those of an axis, and that one's."""
    rest = list(strides)
    if axis is None:
        return rest, 0
    place = MESH_AXES - lead + axis
    segment, rest[place] = rest[place], 0
    return rest, segment


def mesh_sizes(sizes: Iterable[int]) -> list[int]:
    """The sizes of the mesh axes, filled up in front."""
    given = list(sizes)
    return [1] * (MESH_AXES - len(given)) + given


def is_packed(tensor: torch.Tensor) -> bool:
    """Whether the elements of the last axis lie side by side."""
    return tensor.ndim == 0 or tensor.stride(-1) == 1 or tensor.shape[-1] == 1


def joint_mesh(lead: int, *tensors: torch.Tensor) -> tuple[int, ...]:
    """The sizes of the mesh axes that tensors broadcast to."""
    return tuple(max(t.shape[axis] for t in tensors) for axis in range(lead))
