"""A replica-sharded variable between the host, which sees the whole, and the replicas' parts."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from popxl.sharding import Sharding


def parts_of(whole: torch.Tensor, sharding: Sharding) -> torch.Tensor:
    """What replicas hold of a variable's host value: `(groups of held, elements / over)`.

    Without the first axis where all replicas hold the same. A view where no part is filled up and
    the parts follow one another as the replicas do.
    """
    groups, over = sharding.grouping.num_groups, sharding.over
    flat = whole.reshape(groups, whole.numel() // groups)
    missing = sharding.length(flat.shape[1]) * over - flat.shape[1]
    filled = F.pad(flat, (0, missing)) if missing else flat
    parts = filled.reshape(groups * over, sharding.length(flat.shape[1]))
    order = [group * over + part for group, part in sharding.parts]
    if order != list(range(len(parts))):
        parts = parts[torch.tensor(order)]
    return parts if len(order) > 1 else parts[0]


def joined(
    parts: torch.Tensor, sharding: Sharding, shape: tuple[int, ...], every_replica: bool
) -> torch.Tensor:
    """The host value of a variable of `shape` from what each replica holds, `(replicas, part)`.

    Args:
        every_replica: give what each replica and those it shares the value with hold, not one
            value a group.
    """
    together = sharding.together
    elements = math.prod(shape)
    wholes = torch.stack([parts[members].flatten()[:elements] for members in together._members()])
    assignment = sharding.grouping.assignment
    groups = sharding.grouping.num_groups
    chosen = together.assignment
    if not every_replica:
        chosen = [chosen[assignment.index(group)] for group in range(groups)]
    value = wholes[torch.tensor(chosen)].reshape(len(chosen), *shape)
    return value if every_replica or groups > 1 else value[0]
