"""Tensors spread over replicas: gathered to compute with, reduced to update a part (RTS)."""

from __future__ import annotations

import popxl
from popxl import ops
from popxl.ops import collectives

from .graph import GraphWithNamedArgs
from .named_replica_grouping import NamedReplicaGrouping
from .named_tensors import NamedTensors
from .utils import io_tiles_where


def replica_sharded_spec(t: popxl.Tensor, shard_over: popxl.ReplicaGrouping) -> popxl.TensorSpec:
    """The spec of a part of `t`, where each group of `shard_over` holds all parts.

    The spec of `t` itself where it is a part already, a group has one replica, or the group size
    does not divide the elements.
    """
    members = shard_over.group_size
    if t.meta_shape or members == 1 or t.nelms % members:
        return t.spec
    return popxl.TensorSpec((t.nelms // members,), t.dtype, t.shape)


def gather_replica_sharded_tensor(
    t: popxl.Tensor,
    use_io_tiles: bool = False,
    replica_group: popxl.ReplicaGrouping | None = None,
) -> popxl.Tensor:
    """The whole of which the replicas of each group hold parts; `t` where it is no part.

    Args:
        use_io_tiles: without effect here.
        replica_group: all replicas where None.
    """
    if t.meta_shape:
        with io_tiles_where(use_io_tiles):
            t = collectives.replicated_all_gather(t, group=replica_group)
    return ops.io_tile_copy(t) if use_io_tiles else t


def all_gather_replica_sharded_graph(
    tensors: NamedTensors,
    use_io_tiles: bool = False,
    replica_groups: NamedReplicaGrouping | None = None,
) -> tuple[GraphWithNamedArgs, list[str]]:
    """A graph that takes tensors like these and gives the whole of each that is a part.

    The wholes are `NamedTensors.pack(names, graph.bind(tensors).call())`.

    Args:
        replica_groups: for each name, the replicas that hold a whole between them; all replicas
            for all where None.

    Returns:
        The graph, and the names of its outputs in order.

    Raises:
        KeyError: where `replica_groups` lacks a name.
    """

    def gathered(name: str, t: popxl.Tensor) -> popxl.Tensor:
        group = replica_groups.get(name).const_rg if replica_groups is not None else None
        return gather_replica_sharded_tensor(t, use_io_tiles, group)

    return _graph_of_each("all_gather", tensors, gathered)


def reduce_replica_sharded_tensor(
    t: popxl.Tensor,
    op: str = "add",
    replica_group: popxl.ReplicaGrouping | None = None,
    shard_group: popxl.ReplicaGrouping | None = None,
) -> popxl.Tensor:
    """The reduction of `t` over replicas, and of that each replica's part.

    Args:
        op: as for `ops.collectives.replicated_all_reduce`.
        replica_group: the replicas to reduce over; all where None.
        shard_group: the replicas that hold the parts; those of `replica_group` where None. Where
            their number is 1 or does not divide the elements, all get the whole.
    """
    group = replica_group or popxl.gir().replica_grouping()
    parts = shard_group or group
    members = parts.group_size
    if members == 1 or t.nelms % members:
        return collectives.replicated_all_reduce(t, op, group)
    if parts == group:
        return collectives.replicated_reduce_scatter(t, op, group, True)
    if group.group_size > 1:
        t = collectives.replicated_all_reduce(t, op, group)
    return collectives.replica_sharded_slice(t, parts)


def reduce_replica_sharded_graph(
    tensors: NamedTensors,
    op: str = "add",
    use_io_tiles: bool = False,
    shard_groups: NamedReplicaGrouping | None = None,
    replica_group: popxl.ReplicaGrouping | None = None,
) -> tuple[GraphWithNamedArgs, list[str]]:
    """A graph that takes tensors like these and does `reduce_replica_sharded_tensor` to each.

    Args:
        shard_groups: by name; `replica_group` for a name that is missing.

    Returns:
        The graph, and the names of its outputs in order.
    """
    named = shard_groups.to_dict() if shard_groups is not None else {}

    def reduced(name: str, t: popxl.Tensor) -> popxl.Tensor:
        with io_tiles_where(use_io_tiles):
            t = ops.io_tile_copy(t) if use_io_tiles else t
            return reduce_replica_sharded_tensor(t, op, replica_group, named.get(name))

    return _graph_of_each("replica_reduce", tensors, reduced)


def _graph_of_each(
    graph_name: str, tensors: NamedTensors, make
) -> tuple[GraphWithNamedArgs, list[str]]:
    graph = popxl.gir().create_empty_graph(graph_name)
    inputs = {}
    with graph, popxl.in_sequence(False):
        for name, t in tensors.to_dict().items():
            inputs[name] = popxl.graph_input(t.shape, t.dtype, t.name, meta_shape=t.meta_shape)
            popxl.graph_output(make(name, inputs[name]))
    return GraphWithNamedArgs(graph, NamedTensors.from_dict(inputs)), list(inputs)
