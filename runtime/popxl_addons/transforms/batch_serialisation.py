"""The names of batch serialisation, which rewrites a graph for one part of a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import popxl

from .._absent import GRADIENTS, REWRITING, absent
from ..remote import create_remote_buffer


@dataclass
class RemoteHandle:
    """Where a tensor of each step lies.

    Attributes:
        buffer: what it lies in.
        row_offset: added to the number of the step, or a function of it.
        shard_group: the replicas that hold parts of it.
    """

    buffer: popxl.RemoteBuffer
    row_offset: int | Callable[[popxl.Tensor], popxl.Tensor] | None = 0
    shard_group: popxl.ReplicaGrouping | None = None


def batch_serial_buffer(
    t: popxl.Tensor,
    steps: int = 1,
    rows: int = 1,
    shard_group: popxl.ReplicaGrouping | None = None,
) -> popxl.RemoteBuffer:
    """A remote buffer with an entry for each of `steps` parts of a batch, `rows` times.

    Args:
        shard_group: the replicas that hold parts of an entry; it is whole on each where None.
    """
    over = 1 if shard_group is None else shard_group.group_size
    return create_remote_buffer(t.spec, steps * rows, shard_group, over)


batch_serialise = absent("popxl_addons.batch_serialise", REWRITING)
batch_serialise_fwd_and_grad = absent("popxl_addons.batch_serialise_fwd_and_grad", GRADIENTS)
