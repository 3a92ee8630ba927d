"""Replica-sharded variables: the host sees the whole, each replica holds a flat part of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from popxl import dtypes
from popxl.context import get_ir, get_main_graph
from popxl.remote_buffer import RemoteBuffer
from popxl.replica_grouping import ReplicaGrouping
from popxl.tensor import Shard, Tensor, TensorSpec, Variable, _check_slot, _make_variable


@dataclass(frozen=True)
class Sharding:
    """How a variable is spread: the value of each group over `over` of its replicas at a time.

    The first `over` members of a group hold parts 0, 1, … of its flat value, the next `over`
    members hold them again, and so on. All parts are equally long: the last ones are filled up
    with zeros.

    Attributes:
        grouping: which replicas share a value.
        over: parts a value; it divides the size of every group.
    """

    grouping: ReplicaGrouping
    over: int

    @cached_property
    def together(self) -> ReplicaGrouping:
        """The replicas that hold one whole value between them, in the order of its parts."""
        return self._grouping(lambda group, member: (group, member // self.over))

    @cached_property
    def held(self) -> ReplicaGrouping:
        """The replicas that hold the same part of the same value."""
        return self._grouping(lambda group, member: (group, member % self.over))

    @cached_property
    def parts(self) -> list[tuple[int, int]]:
        """For each group of `held`: which group's value, and which part of it."""
        return list(dict.fromkeys((group, member % self.over) for group, member in self._members()))

    def length(self, elements: int) -> int:
        """Elements a part."""
        return math.ceil(elements / self.over)

    def _grouping(self, key: Any) -> ReplicaGrouping:
        keys = [key(group, member) for group, member in self._members()]
        numbers = {k: n for n, k in enumerate(dict.fromkeys(keys))}
        return ReplicaGrouping._from_assignments(self.grouping._ir, [numbers[k] for k in keys])

    def _members(self) -> list[tuple[int, int]]:
        """For each replica: its group, and which member of the group it is."""
        assignment = self.grouping.assignment
        return [(group, assignment[:r].count(group)) for r, group in enumerate(assignment)]


def replica_sharded_buffer(
    shape: Iterable[int],
    dtype: dtypes.dtype,
    replica_grouping: ReplicaGrouping | None = None,
    shard_over: int | None = None,
    entries: int = 1,
) -> RemoteBuffer:
    """A remote buffer for variables of which each replica holds a part.

    Args:
        shape: of the whole, with the axis of groups where the grouping has several.
        shard_over: parts a value; the size of a group where None.

    Returns:
        A buffer of shape `(ceil(elements / shard_over),)`, its meta shape the shape of the whole.

    Raises:
        ValueError: where `shard_over` does not divide the size of a group.
    """
    grouping = replica_grouping or get_ir().replica_grouping()
    size = grouping.const_rg.group_size
    over = size if shard_over is None else shard_over
    _check_over(over, size)
    whole = tuple(shape)[1 if grouping.num_groups > 1 else 0 :]
    buffer = RemoteBuffer((math.ceil(math.prod(whole) / over),), dtype, entries)
    buffer.meta_shape, buffer._shard_over = whole, over
    return buffer


def remote_replica_sharded_variable(
    data: Any,
    remote_buffer: RemoteBuffer,
    offset: int = 0,
    dtype: dtypes.dtype | None = None,
    name: str | None = None,
    downcast: bool = True,
    replica_grouping: ReplicaGrouping | None = None,
    retrieval_mode: str | None = "one_per_group",
    log2_scale: int | None = None,
    nan_on_overflow: bool | None = None,
) -> Variable:
    """A variable in slot `offset` of a remote buffer, of which each replica holds a part.

    `ops.remote_load` gives a replica its part, one dimension of `ceil(elements / parts)`; the
    session reads and writes the whole.

    Args:
        data: the whole: `(num_groups, *shape)` where the grouping has several groups.
        remote_buffer: its shape is that of a part. `popxl.replica_sharded_buffer` makes it.

    Raises:
        ValueError: where the Ir has one replica, the offset is outside the buffer, or the
            buffer's dtype, meta shape or size do not fit.
    """
    _check_replicas(name)
    what = f"remote_replica_sharded_variable {name or ''}"
    if not isinstance(remote_buffer, RemoteBuffer):
        raise TypeError(f"{what}: expected a remote buffer, got {type(remote_buffer).__name__}")
    _check_slot(what, remote_buffer, offset)
    given = data, dtype, downcast, log2_scale, nan_on_overflow
    slot = (remote_buffer, int(offset))
    made = _make_variable(given, name, replica_grouping, retrieval_mode, slot)
    _check_buffer(made, remote_buffer)
    made._sharding = Sharding(made.replica_grouping, _over_of(made, remote_buffer))
    remote_buffer.meta_shape = made.shape
    return made


def replica_sharded_variable(
    data: Any,
    dtype: dtypes.dtype | None = None,
    name: str | None = None,
    downcast: bool = True,
    replica_grouping: ReplicaGrouping | None = None,
    shard_over: int | None = None,
    retrieval_mode: str | None = "one_per_group",
    log2_scale: int | None = None,
    nan_on_overflow: bool | None = None,
) -> tuple[Variable, Tensor]:
    """A variable of which each replica holds a part.

    Args:
        data: the whole: `(num_groups, *shape)` where the grouping has several groups.
        shard_over: parts a value; the size of a group where None.

    Returns:
        The variable, for the session to read and write the whole of; and what a program computes
        with, the part that a replica holds, `(ceil(elements / shard_over),)`. What is written to
        the part is written to the variable.

    Raises:
        ValueError: where the Ir has one replica or `shard_over` does not divide the size of a
            group.
    """
    _check_replicas(name)
    given = data, dtype, downcast, log2_scale, nan_on_overflow
    made = _make_variable(given, name, replica_grouping, retrieval_mode)
    size = made.replica_grouping.const_rg.group_size
    over = size if shard_over is None else shard_over
    _check_over(over, size)
    made._sharding = Sharding(made.replica_grouping, over)
    spec = TensorSpec((made._sharding.length(made.nelms),), made.dtype, made.shape)
    shard = Shard._make(get_main_graph(), spec, f"{made.name}_rts")
    shard._of = made
    return made, shard


def _check_replicas(name: str | None) -> None:
    if get_ir().replication_factor == 1:
        raise ValueError(
            f"variable {name or ''}: the Ir has 1 replica, so nothing can be sharded over "
            "replicas; use popxl.variable or popxl.remote_variable"
        )


def _check_over(over: int, size: int) -> None:
    if over < 1 or size % over:
        raise ValueError(
            f"shard_over={over}: it must be a divisor of the number of replicas that share a "
            f"value, {size}"
        )


def _check_buffer(made: Variable, buffer: RemoteBuffer) -> None:
    if buffer.tensor_dtype != made.dtype:
        raise ValueError(f"variable {made.name} is {made.dtype}, {buffer} is not")
    if buffer.meta_shape and buffer.meta_shape != made.shape:
        raise ValueError(
            f"variable {made.name} is {made.shape}, but {buffer} holds parts of variables of "
            f"shape {buffer.meta_shape}"
        )


def _over_of(made: Variable, buffer: RemoteBuffer) -> int:
    """The number of parts, where need be the least that gives parts as long as the buffer's."""
    size = made.replica_grouping.const_rg.group_size
    length = math.prod(buffer.tensor_shape)
    given = buffer._shard_over
    for over in [given] if given else range(1, size + 1):
        if size % over == 0 and math.ceil(made.nelms / over) == length:
            return over
    raise ValueError(
        f"variable {made.name} of {made.nelms} elements, shared by {size} replicas, has no parts "
        f"as long as those of {buffer}"
    )
