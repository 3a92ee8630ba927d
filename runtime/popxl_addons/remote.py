"""Remote buffers for whole layers: one buffer for each variable, one entry for each layer."""

from __future__ import annotations

from collections.abc import Mapping

import popxl
from popxl import ops

from .dot_tree import DotTree
from .graph import GraphWithNamedArgs
from .named_tensors import NamedTensors
from .utils import io_tiles_where
from .variable_factory import NamedVariableFactories, VariableFactory


class NamedRemoteBuffers(DotTree[popxl.RemoteBuffer]):
    """A tree of remote buffers, named as the variables in them."""


def named_variable_buffers(
    factories: NamedVariableFactories,
    entries: int = 1,
    shard_over_dict: Mapping[str, int] | int | bool = True,
) -> NamedRemoteBuffers:
    """A buffer of `entries` slots for each factory.

    Args:
        shard_over_dict: over how many replicas of its group a variable is spread: by name, or for
            all; True, and a name that is missing, is the whole group, False is 1. Where it is
            more than 1, a replica loads a part of the variable; see `popxl_addons.rts`.

    Raises:
        ValueError: for a number outside 1 to the size of the variable's replica group.
    """
    buffers = {}
    for name, factory in factories.to_dict().items():
        spec = popxl.TensorSpec(factory.shape, factory.dtype, factory.meta_shape or ())
        over = _sharded_over(name, factory, shard_over_dict)
        buffers[name] = create_remote_buffer(spec, entries, factory.replica_grouping, over)
    return NamedRemoteBuffers.from_dict(buffers)


def named_buffers(tensors: NamedTensors, entries: int = 1) -> NamedRemoteBuffers:
    """A buffer of `entries` slots for each tensor."""
    return NamedRemoteBuffers.from_dict(
        {
            name: create_remote_buffer(t.spec, entries, None, 1)
            for name, t in tensors.to_dict().items()
        }
    )


def create_remote_buffer(
    spec: popxl.TensorSpec,
    entries: int = 1,
    replica_group: popxl.ReplicaGrouping | None = None,
    shard_over: int | None = None,
) -> popxl.RemoteBuffer:
    """A buffer of `entries` slots for tensors like `spec`, or for parts of them.

    Args:
        replica_group: the replicas that share a value; all where None.
        shard_over: parts that a value is split into; the size of a group where None. A spec that
            has a meta shape is that of a part already.
    """
    if spec.meta_shape:
        buffer = popxl.remote_buffer(spec.shape, spec.dtype, entries)
        buffer.meta_shape = spec.meta_shape
        return buffer
    group = replica_group or popxl.gir().replica_grouping()
    over = group.group_size if shard_over is None else shard_over
    if over == 1:
        return popxl.remote_buffer(spec.shape, spec.dtype, entries)
    groups = (group.num_groups,) if group.num_groups > 1 else ()
    make = popxl.replica_sharded_buffer
    return make((*groups, *spec.shape), spec.dtype, group, over, entries)


def load_remote_graph(
    buffers: NamedRemoteBuffers, entries: int = 1, use_io_tiles: bool = False
) -> tuple[GraphWithNamedArgs, list[str]]:
    """A graph that takes an entry (an int32 scalar) and loads that slot of every buffer.

    The tensors of layer 3 are `NamedTensors.pack(names, graph.call(3))`.

    Args:
        entries: slots that each buffer is to have at least.

    Returns:
        The graph, and the names of its outputs in order.
    """
    names, tree = buffers.unpack()
    graph = popxl.gir().create_empty_graph("load_remote")
    with graph, popxl.in_sequence(False):
        entry = popxl.graph_input((), popxl.int32, "load_index")
        for name, buffer in zip(names, tree, strict=True):
            _grow(buffer, entries)
            popxl.graph_output(_load(buffer, entry, name, use_io_tiles))
    return GraphWithNamedArgs(graph), list(names)


def store_remote_graph(
    buffers: NamedRemoteBuffers, entries: int = 1, use_io_tiles: bool = False
) -> GraphWithNamedArgs:
    """A graph that takes an entry (an int32 scalar) and stores a tensor in that slot of each.

    `graph.bind(tensors).call(3)` stores the tensors of layer 3.

    Args:
        entries: slots that each buffer is to have at least.
    """
    graph = popxl.gir().create_empty_graph("store_remote")
    inputs = {}
    with graph, popxl.in_sequence(False):
        entry = popxl.graph_input((), popxl.int32, "store_index")
        for name, buffer in zip(*buffers.unpack(), strict=True):
            _grow(buffer, entries)
            inputs[name] = popxl.graph_input(
                buffer.tensor_shape, buffer.tensor_dtype, name, meta_shape=buffer.meta_shape
            )
            _store(buffer, entry, inputs[name], use_io_tiles)
    return GraphWithNamedArgs(graph, NamedTensors.from_dict(inputs))


def load_remote(
    buffers: NamedRemoteBuffers, entry: int | popxl.Tensor = 0, use_io_tiles: bool = False
) -> NamedTensors:
    """Load a slot of every buffer in the current graph."""
    return NamedTensors.from_dict(
        {name: _load(b, entry, name, use_io_tiles) for name, b in buffers.to_dict().items()}
    )


def store_remote(
    buffers: NamedRemoteBuffers,
    tensors: NamedTensors,
    entry: int | popxl.Tensor = 0,
    use_io_tiles: bool = False,
) -> None:
    """Store each tensor in a slot of the buffer that has its name."""
    for buffer, tensor in buffers.to_mapping(tensors).items():
        _store(buffer, entry, tensor, use_io_tiles)


def _sharded_over(
    name: str, factory: VariableFactory, shard_over: Mapping[str, int] | int | bool
) -> int:
    """How many replicas a variable is spread over."""
    size = factory.replica_grouping.group_size
    number = shard_over.get(name, True) if isinstance(shard_over, Mapping) else shard_over
    if isinstance(number, bool) or number is None:
        return 1 if number is False else size
    if not 1 <= number <= size:
        raise ValueError(
            f"variable {name} can be sharded over 1 to {size} replicas (those of one group), "
            f"shard_over_dict says {number}"
        )
    return number


def _grow(buffer: popxl.RemoteBuffer, entries: int) -> None:
    if buffer.entries < entries:
        buffer.entries = entries


def _load(
    buffer: popxl.RemoteBuffer, entry: int | popxl.Tensor, name: str, use_io_tiles: bool
) -> popxl.Tensor:
    with io_tiles_where(use_io_tiles):
        return ops.remote_load(buffer, entry, name)


def _store(
    buffer: popxl.RemoteBuffer, entry: int | popxl.Tensor, tensor: popxl.Tensor, use_io_tiles: bool
) -> None:
    with io_tiles_where(use_io_tiles):
        ops.remote_store(buffer, entry, tensor)
