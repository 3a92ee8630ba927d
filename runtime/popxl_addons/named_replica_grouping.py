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


LINK_DOMAIN = 64
"""Replicas that Poplar takes to be near each other where it is told nothing else."""


def fill_none_group(
    rg: popxl.ReplicaGrouping | None, none_value: popxl.ReplicaGrouping
) -> popxl.ReplicaGrouping:
    """`rg`, or `none_value` where it is None."""
    return none_value if rg is None else rg


def get_ild_replica_grouping(
    replica_grouping: popxl.ReplicaGrouping | None = None,
) -> popxl.ReplicaGrouping:
    """A grouping whose groups reach no further than a link domain: of the same stride, but smaller.

    Args:
        replica_grouping: all replicas where None.

    Raises:
        ValueError: where neighbours are further apart than that.
    """
    ir = popxl.gir()
    grouping = replica_grouping or ir.replica_grouping()
    domain = min(ir.replication_factor, LINK_DOMAIN)
    if grouping.stride > domain:
        raise ValueError(f"a stride of {grouping.stride} is more than a link domain, {domain}")
    if grouping.stride * grouping.group_size <= domain:
        return grouping
    return ir.replica_grouping(grouping.stride, domain // grouping.stride)
