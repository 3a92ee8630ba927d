"""Collectives over mesh axes, and over any assignment of replicas to groups."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from popxl.replica_grouping import ReplicaGrouping

from popxl_torch.backends.reference.functions import HALF
from popxl_torch.backends.reference.reductions import reduce_mean
from popxl_torch.collectives.mesh import Mesh


class Collectives:
    """The collectives of one program, on values laid out on its mesh."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh

    def all_reduce(self, x: torch.Tensor, op: str, group: ReplicaGrouping) -> torch.Tensor:
        """The reduction over the members of each group, of size 1 along their axes."""
        if op == "local":
            return x
        axes = self.mesh.axes_of(group)
        if axes is None:
            return self._by_group(x, group, lambda members: reduce(members, op, (0,), 1)[0])
        held_once = math.prod(self.mesh.dims[a] for a in axes if x.shape[a] == 1)
        return reduce(x, op, axes, held_once)

    def all_gather(
        self, x: torch.Tensor, group: ReplicaGrouping, axis: int, new_axis: bool
    ) -> torch.Tensor:
        """The members' tensors along logical `axis`, new or lengthened."""
        axes, lead = self.mesh.axes_of(group), self.mesh.lead
        if axes is None:
            join = torch.stack if new_axis else torch.cat
            return self._by_group(x, group, lambda members: join(members.unbind(), axis))
        wide = x.expand([self.mesh.dims[i] if i in axes else s for i, s in enumerate(x.shape)])
        at = lead + axis
        kept = [i for i in range(lead) if i not in axes]
        moved = wide.permute(*kept, *range(lead, at), *axes, *range(at, x.ndim))
        members = math.prod(self.mesh.dims[a] for a in axes)
        length = [members] if new_axis else [members * x.shape[at]]
        rest = x.shape[at:] if new_axis else x.shape[at + 1 :]
        mesh = [1 if i in axes else x.shape[i] for i in range(lead)]
        return moved.reshape(*mesh, *x.shape[lead:at], *length, *rest)

    def reduce_scatter(
        self, x: torch.Tensor, op: str, group: ReplicaGrouping, members: int
    ) -> torch.Tensor:
        """Member i gets part i of `members` equal flat parts of the reduction."""
        axes, lead = self.mesh.axes_of(group), self.mesh.lead
        if axes is None or op == "local":
            return self._scatter_by_group(x, op, group, members)
        parts = _flat_parts(self.all_reduce(x, op, group), lead, members)
        sizes = [self.mesh.dims[a] for a in axes]
        spread = parts.reshape(*parts.shape[:lead], *sizes, parts.shape[-1])
        for number, axis in enumerate(axes):
            spread = spread.transpose(axis, lead + number)
        return spread.reshape(*spread.shape[:lead], parts.shape[-1])

    def _scatter_by_group(
        self, x: torch.Tensor, op: str, group: ReplicaGrouping, members: int
    ) -> torch.Tensor:
        whole = self.mesh.flat(self.all_reduce(x, op, group))
        parts = _flat_parts(whole, 1, members)
        seen: dict[int, int] = {}
        ranks = []
        for number in group.assignment:
            ranks.append(seen.get(number, 0))
            seen[number] = ranks[-1] + 1
        return self.mesh.unflat(parts[torch.arange(len(ranks)), torch.tensor(ranks)])

    def _by_group(self, x, group: ReplicaGrouping, combine) -> torch.Tensor:
        """Every replica gets what `combine` makes of its group's tensors, `(members, *shape)`."""
        flat = self.mesh.flat(x)
        assignment = torch.tensor(group.assignment)
        results = [combine(flat[assignment == g]) for g in range(group.num_groups)]
        return self.mesh.unflat(torch.stack([results[g] for g in group.assignment]))


def reduce(x: torch.Tensor, op: str, axes: tuple[int, ...], copies: int) -> torch.Tensor:
    """Reduce over `axes` (kept, size 1); each element stands for `copies` equal members."""
    if not axes:
        return x.square() if op == "square_add" else x
    wide = x.float() if x.dtype in HALF else x
    return _REDUCTIONS[op](wide, axes, copies).to(x.dtype)


def _product(x: torch.Tensor, axes: tuple[int, ...], copies: int) -> torch.Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True)
    return x**copies


_REDUCTIONS = {
    "add": lambda x, axes, n: x.sum(axes, keepdim=True, dtype=x.dtype) * n,
    "square_add": lambda x, axes, n: x.square().sum(axes, keepdim=True, dtype=x.dtype) * n,
    "mean": lambda x, axes, n: reduce_mean(x, axes, keepdim=True),
    "mul": _product,
    "min": lambda x, axes, n: x.amin(axes, keepdim=True),
    "max": lambda x, axes, n: x.amax(axes, keepdim=True),
    "and": lambda x, axes, n: x.amin(axes, keepdim=True),
    "or": lambda x, axes, n: x.amax(axes, keepdim=True),
}


def _flat_parts(x: torch.Tensor, lead: int, count: int) -> torch.Tensor:
    """`(*mesh, *shape)` as `(*mesh, count, elements / count)`, filled up with zeros."""
    flat = x.reshape(*x.shape[:lead], -1)
    part = math.ceil(flat.shape[-1] / count)
    return F.pad(flat, (0, part * count - flat.shape[-1])).reshape(*x.shape[:lead], count, part)
