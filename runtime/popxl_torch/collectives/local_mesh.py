"""The replicas that one of several processes holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from popxl.replica_grouping import ReplicaGrouping

from popxl_torch.collectives.mesh import Mesh


class LocalMesh(Mesh):
    """What one process holds of a mesh: its last axes, at one place of the first ones.

    Process p of n holds the p-th n-th of the replicas: its number is the first digits of theirs.

    Attributes:
        whole: the mesh of all replicas, with axes that lie within a process.
        outer: the sizes of its first axes, those that lie across processes.
    """

    def __init__(self, whole: Mesh, index: int, count: int):
        self.whole = whole
        self.replicas = whole.replicas // count
        axes = next(n for n in range(whole.lead + 1) if math.prod(whole.dims[:n]) == count)
        self.outer, self.dims = whole.dims[:axes], whole.dims[axes:]
        self._axes = {}
        self._first = index * self.replicas
        self._place = tuple(int(i) for i in np.unravel_index(index, self.outer)) if axes else ()

    def _find_axes(self, assignment: np.ndarray) -> tuple[int, ...] | None:
        """The axes within a process; None also for groups that lie across processes."""
        axes = self.whole._find_axes(assignment)
        if axes is None or any(axis < len(self.outer) for axis in axes):
            return None
        return tuple(axis - len(self.outer) for axis in axes)

    def widen(self, value: torch.Tensor) -> torch.Tensor:
        """A value of this share as one of the whole mesh, of size 1 across processes."""
        return value.reshape((1,) * len(self.outer) + value.shape)

    def joined(self, values: torch.Tensor, across: Sequence[int]) -> torch.Tensor:
        """Values `(processes, *dims, *shape)` as one of the whole mesh.

        Args:
            across: the axes along which these processes lie.
        """
        sizes = [size if axis in across else 1 for axis, size in enumerate(self.outer)]
        return values.reshape(*sizes, *values.shape[1:])

    def mine(self, value: torch.Tensor) -> torch.Tensor:
        """What this process holds of a value of the whole mesh, without a copy."""
        at = zip(self._place, value.shape, strict=False)
        return value[tuple(place if size > 1 else 0 for place, size in at)]

    def neighbours(self, across: Sequence[int]) -> list[tuple[int, ...]]:
        """The processes that lie together along some of the outer axes: a list a group."""
        numbers = np.arange(math.prod(self.outer)).reshape(self.outer)
        apart = [axis for axis in range(len(self.outer)) if axis not in across]
        size = math.prod(self.outer[axis] for axis in across)
        groups = numbers.transpose(*apart, *across).reshape(-1, size)
        return [tuple(group) for group in groups.tolist()]

    def from_groups(self, host: torch.Tensor, grouping: ReplicaGrouping) -> torch.Tensor:
        """As of a mesh: `host` has all groups, of which those of this process are looked at."""
        if grouping.num_groups == 1:
            return super().from_groups(host, grouping)
        if self.whole.axes_of(grouping) is None:
            own = grouping.assignment[self._first : self._first + self.replicas]
            return self.unflat(host[torch.tensor(own)])
        return self.mine(self.whole.from_groups(host, grouping))
