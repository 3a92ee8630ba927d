"""Sums over the replicas that share a layer.

The three differ in their gradients; forward, two of them are the same.
"""

from __future__ import annotations

import popxl
from popxl import ops


def replicated_all_reduce(
    t: popxl.Tensor, op: str = "add", group: popxl.ReplicaGrouping | None = None
) -> popxl.Tensor:
    """The sum of `t` over the replicas of each group; all replicas where None.

    Raises:
        ValueError: for another `op` than "add".
    """
    _check(op)
    return ops.collectives.replicated_all_reduce(t, op, group)


replicated_all_reduce_identical_grad_inputs = replicated_all_reduce
"""Used where what follows it is the same on all replicas of a group."""


def replicated_all_reduce_identical_inputs(
    t: popxl.Tensor, op: str = "add", group: popxl.ReplicaGrouping | None = None
) -> popxl.Tensor:
    """`t` as it is: it marks where a layer begins whose input all replicas of a group have.

    Only its gradient is a sum.

    Raises:
        ValueError: for another `op` than "add".
    """
    _check(op)
    return ops.identity(t)


def _check(op: str) -> None:
    if op != "add":
        raise ValueError(f"op must be 'add', got {op!r}")
