"""A part of a tensor replaced, in a copy or in a cell."""

from __future__ import annotations

import torch

from popxl_torch.backends.back_end import BackEnd
from popxl_torch.backends.reference.back_end import Reference
from popxl_torch.backends.specs import PlaceSpec
from popxl_torch.memory.arrays import broadcast_shapes
from popxl_torch.memory.cells import Cell


class Update:
    """One `dynamic_update`."""

    def __init__(self, back_end: BackEnd, spec: PlaceSpec):
        self.back_end, self.spec = back_end, spec
        self.__name__ = "dynamic_update"

    def in_cell(self, cell: Cell, index: torch.Tensor, update: torch.Tensor) -> None:
        """Replace the part in the memory of a cell."""
        lead = self.spec.lead
        self._put(cell.writable(index.shape[:lead], update.shape[:lead]), index, update)

    def of_copy(self, x: torch.Tensor, index: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """A copy of `x` with the part replaced."""
        lead = self.spec.lead
        mesh = broadcast_shapes(*(t.shape[:lead] for t in (x, index, update)))
        wide = x.expand(*mesh, *x.shape[lead:]).clone()
        self._put(wide, index, update)
        return wide

    def _put(self, target: torch.Tensor, index: torch.Tensor, update: torch.Tensor) -> None:
        if not self.back_end.place(self.spec, target, index, update):
            Reference().place(self.spec, target, index, update)
