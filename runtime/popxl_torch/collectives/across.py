"""Collectives of replicas that several processes hold.

One whose groups lie within a process is computed there. Otherwise the members' tensors are
exchanged first, and every process computes what one process would, in the same order of replicas:
the result does not depend on the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from popxl.graph import Op
from popxl.replica_grouping import ReplicaGrouping

from popxl_torch.collectives.local_mesh import LocalMesh
from popxl_torch.collectives.processes import Members, Processes
from popxl_torch.collectives.within import Collectives

LARGE = 1 << 16
"""Bytes from which each process reduces a part and the parts are put together: fewer bytes are
sent, but one exchange more is waited for."""

BLOCK = 64
"""Elements by which a sum goes through memory: a part of whole blocks is summed as in the whole."""

Axes = tuple[int, ...]
"""Outer axes of the local."""


class AcrossProcesses:
    """The collectives of one program, on the local of its replicas that this process holds.

    Values may be held once along mesh axes in one process and not in another, where the data says
    so; what is exchanged is therefore as wide as all replicas of the process.
    """

    def __init__(self, local: LocalMesh, processes: Processes):
        self.local, self.processes = local, processes
        self._one = Collectives(local.whole)
        self._axes: dict[ReplicaGrouping, Axes] = {}
        self._groups: dict[Axes, Members] = {}

    def open(self, groups: Iterable[ReplicaGrouping]) -> None:
        """Let the processes that these groupings bring together find each other."""
        for group in groups:
            if across := self._across(group):
                self.processes.open(self.local.neighbours(across))

    def all_reduce(self, x: torch.Tensor, op: str, group: ReplicaGrouping) -> torch.Tensor:
        """As `Collectives.all_reduce`."""
        across = self._across(group, op)

        def reduced(wide: torch.Tensor) -> torch.Tensor:
            return self._one.all_reduce(wide, op, group)

        regular = self.local.whole.axes_of(group) is not None
        if across and regular and self._bytes(x) >= LARGE:
            return self._by_part(x, across, reduced)
        return self._exchanged("all_reduce", x, across, reduced)

    def all_gather(
        self, x: torch.Tensor, group: ReplicaGrouping, axis: int, new_axis: bool
    ) -> torch.Tensor:
        """As `Collectives.all_gather`."""
        return self._exchanged(
            "all_gather",
            x,
            self._across(group),
            lambda wide: self._one.all_gather(wide, group, axis, new_axis),
        )

    def reduce_scatter(
        self, x: torch.Tensor, op: str, group: ReplicaGrouping, members: int
    ) -> torch.Tensor:
        """As `Collectives.reduce_scatter`."""
        return self._exchanged(
            "reduce_scatter",
            x,
            self._across(group, op),
            lambda wide: self._one.reduce_scatter(wide, op, group, members),
        )

    def everywhere(self, x: torch.Tensor) -> torch.Tensor:
        """A value of this local and those of all others, on the whole mesh."""
        across = tuple(range(len(self.local.outer)))
        return self._gathered(x, across)

    def _across(self, group: ReplicaGrouping, op: str = "add") -> Axes:
        """The outer axes along which members of a group lie."""
        if op == "local":
            return ()
        if group not in self._axes:
            self._axes[group] = self._find_axes(group)
        return self._axes[group]

    def _find_axes(self, group: ReplicaGrouping) -> Axes:
        every = range(len(self.local.outer))
        axes = self.local.whole.axes_of(group)
        if axes is not None:
            return tuple(axis for axis in every if axis in axes)
        return tuple(every) if group._crosses(self.local.replicas) else ()

    def _members(self, across: Axes) -> Members:
        """The processes that this one exchanges with along these axes, itself among them."""
        if across not in self._groups:
            groups = self.local.neighbours(across)
            self._groups[across] = next(g for g in groups if self.processes.index in g)
        return self._groups[across]

    def _bytes(self, x: torch.Tensor) -> int:
        """Of what goes into an exchange."""
        elements = math.prod(x.shape[self.local.lead :])
        return self.local.replicas * elements * x.element_size()

    def _exchanged(
        self,
        kind: str,
        x: torch.Tensor,
        across: Axes,
        collective: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        if not across:
            return self.local.mine(collective(self.local.widen(x)))
        with self.processes.counted(kind, self._bytes(x), self._members(across)):
            wide = self._gathered(x, across)
        return self.local.mine(collective(wide))

    def _gathered(self, x: torch.Tensor, across: Axes) -> torch.Tensor:
        values = self.processes.gather(self.local.full(x), self._members(across))
        return self.local.joined(values, across)

    def _by_part(
        self, x: torch.Tensor, across: Axes, reduced: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Every process reduces one part of the elements, of all members."""
        lead, members = self.local.lead, self._members(across)
        flat = self.local.full(x).flatten(lead)
        part = math.ceil(flat.shape[-1] / len(members) / BLOCK) * BLOCK
        parts = [flat[..., i * part : (i + 1) * part] for i in range(len(members))]
        with self.processes.counted("all_reduce", self._bytes(x), members):
            of_members = self.processes.exchange(parts, members)
            mine = self.local.mine(reduced(self.local.joined(of_members, across)))
            padded = F.pad(mine, (0, part - mine.shape[-1]))
            results = self.processes.gather(padded, members)
        joined = results.movedim(0, lead).flatten(lead)[..., : flat.shape[-1]]
        return joined.reshape(*joined.shape[:lead], *x.shape[lead:])


def of_op(op: Op, do: Collectives | AcrossProcesses) -> Callable[[torch.Tensor], torch.Tensor]:
    """The collective that an op asks for."""
    group = op.group
    options: tuple[Any, ...]
    if op.kind == "all_reduce":
        options = (op.reduction, group)
    elif op.kind == "all_gather":
        options = (group, op.axis, op.new_axis)
    else:
        options = (op.reduction, group, group.group_size)
    function = getattr(do, op.kind)

    def run(x: torch.Tensor) -> torch.Tensor:
        return function(x, *options)

    run.__name__ = op.kind
    return run
