"""Which replicas belong together: those that hold one value, or that communicate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from popxl.ir import Ir


class ReplicaGrouping:
    """A partition of an Ir's replicas into groups; made by `Ir.replica_grouping`."""

    _ir: Ir
    _assignment: tuple[int, ...]

    def __init__(self):
        raise RuntimeError(
            "popxl.ReplicaGrouping cannot be constructed directly: use ir.replica_grouping"
        )

    @classmethod
    def _from_strides(cls, ir: Ir, stride: int, group_size: int | None) -> ReplicaGrouping:
        replicas = ir.replication_factor
        if group_size is None:
            group_size = max(replicas // stride, 1) if stride >= 1 else 1
        if (
            stride < 1
            or group_size < 1
            or replicas % (stride * group_size if group_size > 1 else 1)
        ):
            raise ValueError(
                f"replica_grouping(stride={stride}, group_size={group_size}): both must be at "
                f"least 1 and stride x group_size must divide the replication factor, {replicas}"
            )
        if group_size == 1:
            return cls._from_assignments(ir, range(replicas))
        block = stride * group_size
        return cls._from_assignments(
            ir, ((r // block) * stride + r % stride for r in range(replicas))
        )

    @classmethod
    def _from_assignments(cls, ir: Ir, assignment: Iterable[int]) -> ReplicaGrouping:
        self = super().__new__(cls)
        self._assignment = _renumber(assignment)
        if len(self._assignment) != ir.replication_factor:
            raise ValueError(
                f"replica_grouping_from_assignments: {len(self._assignment)} assignments given, "
                f"the replication factor is {ir.replication_factor}"
            )
        self._ir = ir
        return self

    @property
    def assignment(self) -> list[int]:
        """The group of each replica; groups are numbered as they first appear."""
        return list(self._assignment)

    @property
    def num_groups(self) -> int:
        return max(self._assignment) + 1

    @property
    def group_size(self) -> int:
        """Replicas a group.

        Raises:
            ValueError: where groups differ in size.
        """
        sizes = self._sizes()
        if len(sizes) > 1:
            raise ValueError(f"{self} has groups of sizes {sorted(sizes)}: no single group_size")
        return sizes.pop()

    @property
    def stride(self) -> int:
        """Distance between neighbours in a group; 1 where groups have a single member.

        Raises:
            NotImplementedError: where the distances differ.
        """
        strides = self._strides()
        if len(strides) > 1:
            raise NotImplementedError(
                f"{self} has neighbours {sorted(strides)} apart: no single stride"
            )
        return strides.pop() if strides else 1

    @property
    def is_const(self) -> bool:
        """True where one stride and one group size describe the grouping."""
        return len(self._sizes()) == 1 and len(self._strides()) <= 1

    @property
    def const_rg(self) -> ReplicaGrouping:
        """This grouping, or the coarsest one of a single stride and size that is finer."""
        if self.is_const:
            return self
        gaps = [b - a for group in self._members() for a, b in itertools.pairwise(group)]
        stride = min(gaps, default=1)
        runs = [run for group in self._members() for run in _runs(group, stride)]
        size = math.gcd(*runs)
        return self._from_strides(self._ir, stride if size > 1 else 1, size)

    def transpose(self) -> ReplicaGrouping:
        """The grouping of the first members of all groups, then of the second ones, and so on."""
        rank_in_group = {r: i for members in self._members() for i, r in enumerate(members)}
        return self._from_assignments(
            self._ir, [rank_in_group[r] for r in range(len(self._assignment))]
        )

    def _sizes(self) -> set[int]:
        return {len(members) for members in self._members()}

    def _strides(self) -> set[int]:
        return {b - a for members in self._members() for a, b in itertools.pairwise(members)}

    def _crosses(self, together: int) -> bool:
        """Whether a group has members in two processes of `together` replicas each."""
        return any(len({r // together for r in members}) > 1 for members in self._members())

    def _members(self) -> list[list[int]]:
        groups: list[list[int]] = [[] for _ in range(self.num_groups)]
        for replica, group in enumerate(self._assignment):
            groups[group].append(replica)
        return groups

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReplicaGrouping) and self._assignment == other._assignment

    def __hash__(self) -> int:
        return hash(self._assignment)

    def __repr__(self) -> str:
        if not self.is_const:
            return f"ReplicaGrouping(assignment={self.assignment})"
        return (
            f"ReplicaGrouping(num_replicas={len(self._assignment)}, stride={self.stride}, "
            f"group_size={self.group_size}, num_groups={self.num_groups})"
        )


def _runs(members: list[int], stride: int) -> list[int]:
    """How many members follow one another at this distance, for each run of them."""
    starts = [i for i, (a, b) in enumerate(itertools.pairwise(members), 1) if b - a != stride]
    return [b - a for a, b in itertools.pairwise([0, *starts, len(members)])]


def _renumber(assignment: Iterable[int]) -> tuple[int, ...]:
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(group, len(numbers)) for group in assignment)
