"""Collectives over groups of any stride: PopXL's own take any here."""

from __future__ import annotations

import popxl
from popxl import ops
from popxl.ops import collectives


def replicated_all_gather_strided(
    t: popxl.Tensor, group: popxl.ReplicaGrouping | None = None
) -> popxl.Tensor:
    """`ops.collectives.replicated_all_gather`."""
    return collectives.replicated_all_gather(t, group=group)


def replicated_all_reduce_strided(
    t: popxl.Tensor, op: str = "add", group: popxl.ReplicaGrouping | None = None
) -> popxl.Tensor:
    """`ops.collectives.replicated_all_reduce`."""
    return collectives.replicated_all_reduce(t, op, group)


def replicated_all_reduce_strided_identical_inputs(
    t: popxl.Tensor, op: str = "add", group: popxl.ReplicaGrouping | None = None
) -> popxl.Tensor:
    """`t` as it is: only the gradient of this is a sum over replicas."""
    return ops.identity(t)


def replicated_all_reduce_strided_identical_grad_inputs(
    t: popxl.Tensor, op: str = "add", group: popxl.ReplicaGrouping | None = None
) -> popxl.Tensor:
    """`replicated_all_reduce_strided`, where what follows is the same throughout a group."""
    return replicated_all_reduce_strided(t, op, group)


def replicated_reduce_scatter_strided(
    t: popxl.Tensor,
    op: str = "add",
    group: popxl.ReplicaGrouping | None = None,
    configure_output_for_replicated_tensor_sharding: bool = False,
) -> popxl.Tensor:
    """`ops.collectives.replicated_reduce_scatter`."""
    return collectives.replicated_reduce_scatter(
        t, op, group, configure_output_for_replicated_tensor_sharding
    )
