"""A seed for random numbers that lasts from run to run."""

from __future__ import annotations

import popxl


def seed_variable(
    seed: int, replica_grouping: popxl.ReplicaGrouping | None = None
) -> tuple[popxl.Variable, popxl.Tensor]:
    """A variable with a seed of its own for each group, and the tensor that ops are given.

    Under PopXL the variable is a remote one and the tensor what is loaded of it; here they are the
    same, so what a program writes to the tensor stays in the variable, as it does there.

    Args:
        seed: the parent seed, of `popxl.create_seeds`.
        replica_grouping: which replicas share a seed; none where None.
    """
    grouping = replica_grouping or popxl.gcg().ir.replica_grouping(group_size=1)
    seeds = popxl.create_seeds(seed, replicas=grouping.num_groups)
    made = popxl.variable(seeds, popxl.uint32, "random_seed", replica_grouping=grouping)
    return made, made
