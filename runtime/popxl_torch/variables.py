"""The variables of a program where they are computed with, and their values for the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from popxl.remote_buffer import RemoteBuffer
from popxl.replica_grouping import ReplicaGrouping
from popxl.tensor import Variable

from popxl_torch.analysis.aliasing import Key
from popxl_torch.backends.cuda.streaming import Streamer
from popxl_torch.collectives.across import AcrossProcesses
from popxl_torch.collectives.mesh import Mesh
from popxl_torch.collectives.within import Collectives
from popxl_torch.device import memory_told
from popxl_torch.lowering.placement import load
from popxl_torch.memory import shards
from popxl_torch.memory.arrays import repeated, to_numpy, to_torch
from popxl_torch.memory.cells import Cell, Lasting, RemoteStore
from popxl_torch.memory.paging import Pager


@dataclass
class Variables:
    """The variables of a session, each with its cell.

    Attributes:
        memory: what cells are a part of.
        remote: the slots that remote variables are in.
        written: the variables that the program may write to.
    """

    device: torch.device
    mesh: Mesh
    collectives: Collectives | AcrossProcesses
    pager: Pager
    streamer: Streamer | None
    memory: Lasting
    remote: dict[RemoteBuffer, RemoteStore]
    cells: dict[Variable, Cell] = field(default_factory=dict)
    written: list[Variable] = field(default_factory=list)

    def add(self, variable: Variable) -> None:
        """Make the cell of a variable, with its initial value."""
        value = self._value(variable, variable._data)
        cell = Cell(value, _is_shared(value), lasting=self.memory)
        if variable._remote is not None:
            buffer, offset = variable._remote
            self.remote[buffer].place(offset, cell)
        self.cells[variable] = cell

    def read(
        self, variable: Variable, every_replica: bool = False, held: torch.Tensor | None = None
    ) -> np.ndarray:
        """The variable's value, or that of `held`, in host shape, or `(replicas, *shape)`.

        Of groups and replicas that other processes hold it is asked from these: all must read it.
        """
        value = self.cells[variable].tensor if held is None else held
        mesh, grouping = self.mesh, holders_of(variable)
        apart = every_replica or grouping.num_groups > 1
        if isinstance(self.collectives, AcrossProcesses) and apart:
            value, mesh = self.collectives.everywhere(value), self.collectives.local.whole
        if variable._sharding is not None:
            parts = mesh.flat(value).flatten(1)
            return to_numpy(shards.joined(parts, variable._sharding, variable.shape, every_replica))
        value = value.reshape((*value.shape[: mesh.lead], *variable.shape))  # a slot's may differ
        if every_replica and grouping.num_groups < variable.ir.replication_factor:
            return to_numpy(mesh.flat(value).clone())
        return to_numpy(mesh.to_groups(value, grouping).clone())

    def held(self, variables: Iterable[Variable] | None = None) -> dict[Variable, torch.Tensor]:
        """What variables hold now, to be given to `put` or `read`: by default all it may write."""
        chosen = self.written if variables is None else variables
        return {v: self.cells[v].share() for v in chosen}

    def put(self, held: Mapping[Variable, torch.Tensor]) -> None:
        """Let variables hold again what `held` gave."""
        for variable, tensor in held.items():
            self.cells[variable].move(tensor, True)

    @memory_told()
    def write(self, variable: Variable, array: np.ndarray) -> None:
        """Set the variable to `array`, in host shape; its memory is used as it is on a CPU."""
        self.pager.forget()
        cell = self.cells[variable]
        value = self._value(variable, array, cell.tensor)
        cell.move(value, _is_shared(value))

    @memory_told()
    def fill(self, variable: Variable, values: np.ndarray, swapped: bool) -> None:
        """Set the variable to `values` over and over; see `Session.fill_variable_data`."""
        self.pager.forget()
        if variable._sharding is not None:
            self.write(variable, _resized(values, variable.shape_on_host, swapped))
            return
        cell, streamer = self.cells[variable], self._streamer_of(variable)
        shape = list(self._value(variable, _blank(variable)).shape)
        if swapped:
            shape[-2:] = shape[:-3:-1]
        device = self.device if streamer is None else torch.device("cpu")
        value = repeated(to_torch(values), shape, device)
        value = value.transpose(-1, -2) if swapped else value
        if streamer is not None:
            value = streamer.hold(value, cell.tensor)
        cell.move(value, _is_shared(value))

    def _value(
        self, variable: Variable, array: np.ndarray, old: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The array where the variable's value is, which was `old`."""
        own = self.mesh.from_groups(_as_held(variable, array), holders_of(variable))
        if variable._remote is not None:
            own = own.reshape((*own.shape[: self.mesh.lead], *variable._remote[0].tensor_shape))
        streamer = self._streamer_of(variable)
        return load(own, self.device) if streamer is None else streamer.hold(own, old)

    def _streamer_of(self, variable: Variable) -> Streamer | None:
        """What brings a variable to the device that is kept on the host."""
        streamer = self.streamer
        return streamer if streamer is not None and variable in streamer.variables else None


def written(
    variables: Iterable[Variable], arguments: Sequence[Variable], writes: Iterable[Key]
) -> list[Variable]:
    """The variables that the lowered main graph, called with `arguments`, may write to."""
    keys = set(writes)
    inputs = {v: ("in", i) for i, v in enumerate(arguments)}
    return [
        v
        for v in variables
        if (inputs[v] if v._remote is None else ("remote", v._remote[0].remote_buffer_id)) in keys
    ]


def holders_of(variable: Variable) -> ReplicaGrouping:
    """Which replicas hold the same of it."""
    sharding = variable._sharding
    return variable.replica_grouping if sharding is None else sharding.held


def _is_shared(value: torch.Tensor) -> bool:
    """Whether its memory is the host's, or that of one element is several's."""
    return value.device.type == "cpu" or 0 in value.stride()


def _as_held(variable: Variable, array: np.ndarray) -> torch.Tensor:
    """The host's value as what replicas hold of it, of one group after the other."""
    sharding = variable._sharding
    if sharding is None:
        return to_torch(array)
    parts = shards.parts_of(to_torch(array), sharding)
    shape = (-1,) if variable._remote is None else variable._remote[0].tensor_shape
    return parts.reshape(*parts.shape[:-1], *shape)


def _resized(values: np.ndarray, shape: tuple[int, ...], swapped: bool) -> np.ndarray:
    if not swapped:
        return np.resize(values, shape)
    return np.resize(values, (*shape[:-2], shape[-1], shape[-2])).swapaxes(-1, -2)


def _blank(variable: Variable) -> np.ndarray:
    return np.broadcast_to(np.zeros((), variable.dtype.as_numpy()), variable.shape_on_host)
