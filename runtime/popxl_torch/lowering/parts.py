"""A part of a tensor replaced, in a copy or in a cell: natively, or as `indexing.py` does it."""

from __future__ import annotations

import torch

from popxl_torch.backends.cpu.library import Library
from popxl_torch.backends.cpu.place import put
from popxl_torch.backends.reference import indexing
from popxl_torch.memory.arrays import broadcast_shapes
from popxl_torch.memory.cells import Cell


class Update:
    """One `dynamic_update`.

    Args:
        lead: the number of mesh axes.
        axes: counted from the end.
        sizes: of the part, along them.
    """

    def __init__(
        self, native: Library | None, lead: int, axes: tuple[int, ...], sizes: tuple[int, ...]
    ):
        self.native, self.lead, self.axes, self.sizes = native, lead, axes, sizes
        self.__name__ = "dynamic_update"

    def in_cell(self, cell: Cell, index: torch.Tensor, update: torch.Tensor) -> None:
        """Replace the part in the memory of a cell."""
        lead = self.lead
        target = cell.writable(index.shape[:lead], update.shape[:lead])
        if not self._put(target, index, update):
            indexing.update_cell(cell, index, update, lead, self.axes, self.sizes)

    def of_copy(self, x: torch.Tensor, index: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """A copy of `x` with the part replaced."""
        lead = self.lead
        if self.native is not None and x.device.type == "cpu":
            mesh = broadcast_shapes(*(t.shape[:lead] for t in (x, index, update)))
            wide = x.expand(*mesh, *x.shape[lead:]).clone()
            if self._put(wide, index, update):
                return wide
        return indexing.dynamic_update(x, index, update, lead, self.axes, self.sizes)

    def _put(self, target: torch.Tensor, index: torch.Tensor, update: torch.Tensor) -> bool:
        return self.native is not None and put(
            self.native, self.lead, target, index, update, self.axes, self.sizes
        )
