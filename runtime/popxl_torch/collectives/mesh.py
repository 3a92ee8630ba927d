"""Replicas as leading axes of a tensor.

The replicas of a program are laid out as a mesh: replica numbers written as digits, so that every
grouping the program uses is a choice of digits. With 4 x 4 tensor parallelism the mesh is (4, 4),
and a value is a tensor of shape `(4 or 1, 4 or 1, *shape)`: size 1 where it is the same along that
axis. An all-reduce is then a sum over an axis, and what it makes is held and computed with once.
With one replica the mesh has no axes and costs nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import torch
from popxl.replica_grouping import ReplicaGrouping

_SMALL = 1 << 20
"""Bytes up to which host arrays are searched for equal replicas."""


class Mesh:
    """The layout of `replicas` replicas for the groupings of a program.

    Args:
        together: replicas that some axes are to hold between them: those of one process.
    """

    def __init__(self, replicas: int, groupings: Iterable[ReplicaGrouping] = (), together: int = 1):
        self.replicas = replicas
        bounds = {1, together, replicas}
        for grouping in dict.fromkeys(groupings):
            wanted = bounds | _boundaries(grouping)
            if _is_chain(wanted):
                bounds = wanted
        ascending = sorted(bounds)
        steps = [b // a for a, b in zip(ascending, ascending[1:], strict=False)]
        self.dims: tuple[int, ...] = tuple(reversed(steps))
        self._axes: dict[ReplicaGrouping, tuple[int, ...] | None] = {}

    @property
    def lead(self) -> int:
        """The number of mesh axes in front of every tensor."""
        return len(self.dims)

    def axes_of(self, grouping: ReplicaGrouping) -> tuple[int, ...] | None:
        """The mesh axes along which the members of a group lie.

        None where the grouping is no choice of axes; `assignment` then has to do.
        """
        if grouping not in self._axes:
            self._axes[grouping] = self._find_axes(np.array(grouping.assignment))
        return self._axes[grouping]

    def _find_axes(self, assignment: np.ndarray) -> tuple[int, ...] | None:
        grid = assignment.reshape(self.dims)
        members = tuple(
            axis for axis in range(self.lead) if (grid == grid.take([0], axis=axis)).all()
        )
        kept = [1 if axis in members else size for axis, size in enumerate(self.dims)]
        expected = np.broadcast_to(np.arange(math.prod(kept)).reshape(kept), self.dims)
        return members if (grid == expected).all() else None

    def full(self, value: torch.Tensor) -> torch.Tensor:
        """`value` expanded to every replica, without a copy: `(*dims, *shape)`."""
        return value.expand((*self.dims, *value.shape[self.lead :]))

    def flat(self, value: torch.Tensor) -> torch.Tensor:
        """`value` with one axis of replicas: `(replicas, *shape)`."""
        return self.full(value).reshape(self.replicas, *value.shape[self.lead :])

    def unflat(self, value: torch.Tensor) -> torch.Tensor:
        """The inverse of `flat`."""
        return value.reshape(*self.dims, *value.shape[1:])

    def from_groups(self, host: torch.Tensor, grouping: ReplicaGrouping) -> torch.Tensor:
        """The value whose group g holds `host[g]` (`host` itself where there is one group).

        A view of `host` where the grouping is a choice of axes.
        """
        if grouping.num_groups == 1:
            return host.reshape((1,) * self.lead + tuple(host.shape)) if self.lead else host
        axes = self.axes_of(grouping)
        if axes is None:
            return self.unflat(host[torch.tensor(grouping.assignment)])
        sizes = [1 if axis in axes else size for axis, size in enumerate(self.dims)]
        return host.unflatten(0, sizes)

    def to_groups(self, value: torch.Tensor, grouping: ReplicaGrouping) -> torch.Tensor:
        """The inverse of `from_groups`; what the first member of each group holds."""
        first = [grouping.assignment.index(g) for g in range(grouping.num_groups)]
        held = value[None]
        if self.lead:
            at = zip(np.unravel_index(first, self.dims), value.shape, strict=False)
            held = value[tuple(torch.from_numpy(i % size) for i, size in at)]
        return held if grouping.num_groups > 1 else held[0]

    def from_replicas(self, host: np.ndarray, tensor: torch.Tensor) -> torch.Tensor:
        """The value of `tensor`, `(replicas, *shape)`, held once along axes where it is equal.

        Args:
            host: the same numbers in numpy.
        """
        value = self.unflat(tensor)
        bits = host.view(np.dtype(f"u{host.itemsize}"))  # -0.0 equals 0.0 but is another value
        grid = bits.reshape(*self.dims, *host.shape[1:])
        for axis in range(self.lead):
            first = grid[(slice(None),) * axis + (slice(1),)]
            if grid.strides[axis] == 0 or (host.nbytes <= _SMALL and (grid == first).all()):
                grid, value = first, value.narrow(axis, 0, 1)
        return value


def _is_chain(bounds: set[int]) -> bool:
    ascending = sorted(bounds)
    return all(b % a == 0 for a, b in zip(ascending, ascending[1:], strict=False))


def _boundaries(grouping: ReplicaGrouping) -> set[int]:
    """The place values of replica numbers at which a grouping starts or stops mattering."""
    if grouping.is_const:
        return {grouping.stride, grouping.stride * grouping.group_size}
    replicas = len(grouping.assignment)
    for primes in (_primes(replicas), _primes(replicas)[::-1]):
        mesh = Mesh.__new__(Mesh)
        mesh.dims = tuple(primes)
        axes = mesh._find_axes(np.array(grouping.assignment))
        if axes is not None:
            inside = [axis in axes for axis in range(len(primes))]
            values = list(
                itertools.accumulate(reversed(primes), initial=1, func=lambda a, b: a * b)
            )
            places = values[:-1][::-1]
            return {places[i] for i in range(len(primes) - 1) if inside[i] != inside[i + 1]}
    return set()


def _primes(n: int) -> list[int]:
    factors, p = [], 2
    while n > 1:
        while n % p == 0:
            factors.append(p)
            n //= p
        p += 1
    return factors
