"""Collectives over groups of any stride: PopXL's own take any here."""

from __future__ import annotations

import popxl
from popxl import ops
from popxl.ops import collectives

replicated_all_reduce_strided = collectives.replicated_all_reduce
replicated_reduce_scatter_strided = collectives.replicated_reduce_scatter

replicated_all_reduce_strided_identical_grad_inputs = replicated_all_reduce_strided
"""Used where what follows is the same throughout a group."""


def replicated_all_gather_strided(
    t: popxl.Tensor, group: popxl.ReplicaGrouping | None = None
) -> popxl.Tensor:
    """`ops.collectives.replicated_all_gather`."""
    return collectives.replicated_all_gather(t, group=group)


def replicated_all_reduce_strided_identical_inputs(
    t: popxl.Tensor, op: str = "add", group: popxl.ReplicaGrouping | None = None
) -> popxl.Tensor:
    """`t` as it is: only the gradient of this is a sum over replicas."""
    return ops.identity(t)
