"""Trees of replica groupings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import popxl

from .dot_tree import DotTree


class NamedReplicaGrouping(DotTree[popxl.ReplicaGrouping]):
    """A tree of replica groupings, named as the variables they belong to."""

    @classmethod
    def build_groups(cls, names: Iterable[str], value: popxl.ReplicaGrouping | None = None) -> Self:
        """The same grouping under every name: `value`, or all replicas in one group."""
        grouping = value or popxl.gir().replica_grouping()
        return cls.from_dict(dict.fromkeys(names, grouping))
