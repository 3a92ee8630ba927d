"""A part of a tensor replaced at a place that is read when it is done: no decision of Python's."""

from __future__ import annotations

import torch

from popxl_torch.backends.cpu.constants import PLACE_AXES
from popxl_torch.backends.cpu.instructions import PUT
from popxl_torch.backends.cpu.library import Run
from popxl_torch.backends.specs import PlaceSpec
from popxl_torch.memory.arrays import broadcast_shapes


def place(
    run: Run, spec: PlaceSpec, target: torch.Tensor, index: torch.Tensor, update: torch.Tensor
) -> bool | None:
    """As `BackEnd.place` has it; the mesh of `target` must be that of all three."""
    lead, axes, sizes = spec.lead, spec.axes, spec.sizes
    rank = target.ndim
    starts = index.reshape(*index.shape[:lead], -1)
    if not _fits(spec, target, starts, update):
        return None
    part = list(target.shape)
    for axis, size in zip(axes, sizes, strict=True):
        part[axis] = size
    update = update.expand(*part)
    spread = starts.expand(*target.shape[:lead], len(axes))
    fill = PLACE_AXES - rank
    size, zeros = target.element_size(), [0] * fill
    run(
        PUT,
        target,
        update=update,
        index=spread,
        target=target,
        item_bytes=size,
        wide_index=int(index.dtype == torch.int64),
        sizes=[1] * fill + part,
        target_strides=zeros + _bytes(target.stride(), size),
        update_strides=zeros + _bytes(update.stride(), size),
        index_strides=zeros
        + _bytes(spread.stride()[:lead], spread.element_size())
        + [0] * (rank - lead),
        count=len(axes),
        first=_padded([target.stride(axis) * size for axis in axes]),
        most=_padded([target.shape[axis] - n for axis, n in zip(axes, sizes, strict=True)]),
        index_step=spread.stride(-1) * spread.element_size(),
    )
    return True


def _fits(
    spec: PlaceSpec, target: torch.Tensor, starts: torch.Tensor, update: torch.Tensor
) -> bool:
    mesh = target.shape[: spec.lead]
    return (
        target.ndim <= PLACE_AXES
        and target.device.type == "cpu"
        and starts.shape[-1] == len(spec.axes)
        and starts.dtype in (torch.int32, torch.int64)
        and update.dtype == target.dtype
        # Threads write lines of one place each: none may be held once for several shards.
        and broadcast_shapes(mesh, starts.shape[: spec.lead]) == mesh
        and update.numel() > 0
    )


def _padded(numbers: list[int]) -> list[int]:
    return numbers + [0] * (PLACE_AXES - len(numbers))


def _bytes(strides: tuple[int, ...], size: int) -> list[int]:
    return [stride * size for stride in strides]
