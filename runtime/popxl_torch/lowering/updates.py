"""How a part of a tensor is replaced, in a copy or in a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from popxl.graph import Op
from popxl.tensor import Tensor
from torch.fx import Node

from popxl_torch.backends.back_end import BackEnd
from popxl_torch.backends.reference.back_end import Reference
from popxl_torch.backends.specs import PlaceSpec
from popxl_torch.lowering.rules import Emitter, from_end, rule
from popxl_torch.memory.arrays import broadcast_shapes
from popxl_torch.memory.cells import Cell

if TYPE_CHECKING:
    from popxl_torch.lowering.graphs import GraphLowering


def dynamic_update(g: GraphLowering, op: Op) -> None:
    target = op.inputs[0]
    if op.modifies and not is_wide_unsigned(target) and (cell := g.values.cell(target)):
        node, key = cell
        g.call(_update(g, op).in_cell, node, *g.values.protect({key}, op.inputs[1:]))
        return
    (made,) = g.apply_rule(op)
    if op.modifies:
        g.values.assign(target, made)
    else:
        g.values.bind(op.outputs[0], made)


@rule("dynamic_update")
def _copied(b: Emitter, op: Op, args: list[Node]) -> Node:
    return b.call(_update(b, op).of_copy, *args)


def _update(b: Emitter, op: Op) -> Update:
    return Update(b.back_end, PlaceSpec(b.lead, from_end(op), op.sizes))


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


def is_wide_unsigned(t: Tensor) -> bool:
    """Whether torch has few operations of its dtype."""
    return t.dtype.name in ("uint16", "uint32", "uint64")
