"""Factories of variables: what a graph wants as an input, and the data to make it from."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import numpy as np
import popxl
from popxl import ops

from . import memory_map
from .data_source import DataIter, DataSource
from .dot_tree import DotTree
from .named_replica_grouping import NamedReplicaGrouping
from .named_tensors import NamedTensors

if TYPE_CHECKING:
    from .remote import NamedRemoteBuffers


class VariableFactory:
    """Makes a graph's input for a variable, and any number of variables that fit it."""

    def __init__(
        self,
        data_iter: DataIter,
        dtype: popxl.dtypes.dtype | None = None,
        name: str | None = None,
        by_ref: bool = False,
        replica_grouping: popxl.ReplicaGrouping | None = None,
        shard_over: int = 1,
    ):
        """
        Args:
            data_iter: gives the value for one replica group each time: a function, or something
                to iterate over; see `DataSource`.
            dtype: of the variables; that of the data where None.
            by_ref: what the graph writes to its input is written to the variable.
            replica_grouping: which replicas hold the same value; all where None.
            shard_over: the parts that a value is split into, of which the graph's input is one;
                the data and the variables are whole.

        Raises:
            ValueError: where `data_iter` is neither, is empty, or fails; or where a replica group
                has fewer than `shard_over` members.
        """
        self.name = name
        self.by_ref = by_ref
        self._source = DataSource(data_iter, name)
        self.replica_grouping = replica_grouping or popxl.gir().replica_grouping()
        self.shape: tuple[int, ...] = self._source.shape
        self.meta_shape: tuple[int, ...] | None = None
        self.replica_sharded = shard_over > 1
        if self.replica_sharded:
            self._shard(shard_over)
        self.dtype = dtype or self._source.dtype

    @property
    def host_shape(self) -> tuple[int, ...]:
        """The shape of the variables' data: `(num_groups, *shape)`, or `shape` for one group."""
        groups, whole = self.replica_grouping.num_groups, self._source.shape
        return whole if groups == 1 else (groups, *whole)

    def create_input(self, prefix: str | None = None) -> popxl.Tensor:
        """A new input of the current graph."""
        name = f"{prefix}.{self.name}" if prefix else self.name
        return popxl.graph_input(
            self.shape, self.dtype, name, by_ref=self.by_ref, meta_shape=self.meta_shape
        )

    def create_tensor(
        self,
        name: str | None = None,
        empty: bool = False,
        memmap_dir: str | None = None,
        read_only_if_exists: bool = False,
    ) -> popxl.Variable:
        """A new variable of the main graph; the arguments are those of `NamedVariableFactories`."""
        name = name or self.name
        data = self._data(name, empty, memmap_dir, read_only_if_exists)
        return popxl.variable(data, self.dtype, name, replica_grouping=self.replica_grouping)

    def create_remote_tensor(
        self,
        buffer: popxl.RemoteBuffer,
        entry: int,
        name: str | None = None,
        empty: bool = False,
        memmap_dir: str | None = None,
        read_only_if_exists: bool = False,
    ) -> popxl.Variable:
        """A new variable in slot `entry` of `buffer`, spread over replicas where the buffer is."""
        name = name or self.name
        data = self._data(name, empty, memmap_dir, read_only_if_exists)
        make = popxl.remote_variable
        if buffer.meta_shape:
            make = popxl.remote_replica_sharded_variable
        return make(data, buffer, entry, self.dtype, name, replica_grouping=self.replica_grouping)

    def next_data(self, empty: bool = False) -> np.ndarray:
        """The data of one variable, of `host_shape`.

        Where `empty`, an array to write over later: it cannot be written to and takes no memory.

        Raises:
            ValueError: where the data runs out or changes its shape.
        """
        if empty:
            return np.broadcast_to(np.zeros((), self.dtype.as_numpy()), self.host_shape)
        if self.replica_grouping.num_groups == 1:
            return self._source.next(self.dtype)
        data = np.empty(self.host_shape, self.dtype.as_numpy())
        self._fill(data)
        return data

    def next_memmap(
        self,
        memmap_dir: str,
        name: str,
        empty: bool = False,
        read_only_if_exists: bool = False,
    ) -> np.ndarray:
        """The data of one variable, mapped from `memmap_dir/name.npy`.

        Where there is no such file it is made: from the data, or of zeros where `empty`.

        Raises:
            ValueError: where the file holds another shape or dtype.
        """
        path = os.path.join(memmap_dir, f"{name}.npy")
        fill = None if empty else self._fill
        dtype = self.dtype.as_numpy()
        return memory_map.open_or_create(path, self.host_shape, dtype, fill, read_only_if_exists)

    def _shard(self, over: int) -> None:
        """Let the graph's input be one of `over` parts."""
        members = self.replica_grouping.group_size
        if over > members:
            raise ValueError(
                f"variable {self.name}: shard_over={over}, but {members} replicas share its value"
            )
        self.meta_shape = self._source.shape
        self.shape = (math.ceil(math.prod(self.meta_shape) / over),)

    def _data(
        self, name: str | None, empty: bool, memmap_dir: str | None, read_only: bool
    ) -> np.ndarray:
        if memmap_dir is None:
            return self.next_data(empty)
        if name is None:
            raise ValueError("a variable without a name cannot be kept in a file: give it a name")
        return self.next_memmap(memmap_dir, name, empty, read_only)

    def _fill(self, data: np.ndarray) -> None:
        if self.replica_grouping.num_groups == 1:
            data[...] = self._source.next(self.dtype)
            return
        for group in range(self.replica_grouping.num_groups):
            data[group] = self._source.next(self.dtype)


class NamedVariableFactories(DotTree[VariableFactory]):
    """A tree of factories: the variables that a module's graph wants."""

    def init(
        self,
        prefix: str | None = None,
        empty: bool = False,
        memmap_dir: str | None = None,
        read_only_if_exists: bool = False,
    ) -> NamedTensors:
        """Make a variable for each factory, in the order of their names.

        Args:
            prefix: put before the variables' names, with a dot.
            empty: the data is written later; none is made and none takes memory.
            memmap_dir: folder of memory maps: `prefix.name.npy` is mapped, and made where missing.
            read_only_if_exists: map files that were there for reading only.
        """
        data, made = (empty, memmap_dir, read_only_if_exists), {}
        for name, factory in sorted(self.to_dict().items()):
            made[name] = factory.create_tensor(_join(prefix, name), *data)
        return NamedTensors.from_dict(made)

    def init_remote(
        self,
        buffers: NamedRemoteBuffers,
        entry: int = 0,
        prefix: str | None = None,
        empty: bool = False,
        memmap_dir: str | None = None,
        read_only_if_exists: bool = False,
    ) -> NamedTensors:
        """Make a variable for each factory in slot `entry` of the buffer of the same name.

        The other arguments are those of `init`.

        Raises:
            KeyError: where a factory has no buffer.
        """
        data, made = (empty, memmap_dir, read_only_if_exists), {}
        for name, factory in sorted(self.to_dict().items()):
            buffer, full = buffers.get(name), _join(prefix, name)
            made[name] = factory.create_remote_tensor(buffer, entry, full, *data)
        return NamedTensors.from_dict(made)

    def init_undef(self) -> NamedTensors:
        """A tensor for each factory in the current graph, of undefined contents."""
        return self._init_tensors("undef")

    def init_zero(self) -> NamedTensors:
        """A tensor for each factory in the current graph, of zeros."""
        return self._init_tensors("zero")

    @property
    def replica_groupings(self) -> NamedReplicaGrouping:
        """The replica grouping of each factory."""
        groupings = {name: factory.replica_grouping for name, factory in self.to_dict().items()}
        return NamedReplicaGrouping.from_dict(groupings)

    def _init_tensors(self, init_type: str) -> NamedTensors:
        return NamedTensors.from_dict(
            {
                name: ops.init(factory.shape, factory.dtype, name, init_type)
                for name, factory in self.to_dict().items()
            }
        )


def add_variable_input(
    name: str,
    data_iter: DataIter,
    dtype: popxl.dtypes.dtype | None = None,
    by_ref: bool = False,
    replica_grouping: popxl.ReplicaGrouping | None = None,
) -> tuple[popxl.Tensor, VariableFactory]:
    """A new input of the current graph, and the factory of variables for it."""
    factory = VariableFactory(data_iter, dtype, name, by_ref, replica_grouping)
    return factory.create_input(), factory


def add_replica_sharded_variable_input(
    name: str,
    data_iter: DataIter,
    dtype: popxl.dtypes.dtype | None = None,
    by_ref: bool = False,
    replica_grouping: popxl.ReplicaGrouping | None = None,
    shard_over: int | None = None,
) -> tuple[popxl.Tensor, VariableFactory]:
    """A new input for one of `shard_over` parts of a variable, and the factory of the wholes.

    Args:
        shard_over: all replicas that share a value where None.
    """
    grouping = replica_grouping or popxl.gir().replica_grouping()
    over = shard_over or grouping.group_size
    factory = VariableFactory(data_iter, dtype, name, by_ref, grouping, over)
    return factory.create_input(), factory


def _join(prefix: str | None, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
