"""One program on one device: its mesh, its memory, its streams and its lowered main graph."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import popdist
import torch
from popxl.ir import Ir
from popxl.remote_buffer import RemoteBuffer
from popxl.replica_grouping import ReplicaGrouping
from popxl.streams import DeviceToHostStream, HostToDeviceStream, Stream
from popxl.tensor import Variable

from popxl_torch.analysis.aliasing import Key
from popxl_torch.analysis.op_facts import facts_of
from popxl_torch.backends.chosen import chosen
from popxl_torch.backends.cuda import graphs as cuda
from popxl_torch.backends.cuda import lanes
from popxl_torch.backends.cuda.room import Streamed, streamed
from popxl_torch.backends.cuda.streamed_slots import StreamedStore
from popxl_torch.backends.cuda.streaming import Streamer
from popxl_torch.collectives.across import AcrossProcesses
from popxl_torch.collectives.local_mesh import LocalMesh
from popxl_torch.collectives.mesh import Mesh
from popxl_torch.collectives.processes import Processes
from popxl_torch.collectives.within import Collectives
from popxl_torch.device import memory_told, torch_device, without_torch_traces
from popxl_torch.lowering.graphs import Lowering, Surroundings
from popxl_torch.lowering.placement import load, load_stream
from popxl_torch.memory import shards
from popxl_torch.memory.arrays import repeated, to_numpy, to_torch
from popxl_torch.memory.cells import Cell, Lasting, RemoteStore
from popxl_torch.memory.paging import Pager
from popxl_torch.memory.system import given_bytes, untouched_zeros
from popxl_torch.replay.replay import Replays
from popxl_torch.traffic import Traffic

MAPPED_MEMORY = "POPXL_MAPPED_MEMORY"
"""Environment variable: bytes that memory-mapped weights may keep in memory."""


class Executor:
    """Lowers a program and runs it.

    Args:
        ir: the program, which must not change any more.
        device_desc: where tensors are, as `Session` takes it.
        composite_kernels: whether kernels stand in for the graphs they know.
    """

    @memory_told()
    def __init__(self, ir: Ir, device_desc: str, composite_kernels: bool = True):
        device = torch_device(device_desc)
        self.ir, self.device = ir, device
        if device.type == "cuda":
            cuda.sum_in_float32()
        self.mesh, self.collectives = _layout(ir, device)
        self.memory = Lasting()
        self.pager = Pager(given_bytes(MAPPED_MEMORY))
        self.streamer, self._streamed = _streams(ir, device)
        self.remote = {buffer: self._remote_store(buffer) for buffer in ir._remote_buffers}
        self._inputs: dict[Stream, deque[torch.Tensor]] = {}
        self._outputs: dict[Stream, list[torch.Tensor]] = {}
        self._cells = {v: self._new_cell(v) for v in ir.main_graph.variables}
        # Collectives between processes wait on the host, which no CUDA graph can hold.
        alone = not isinstance(self.collectives, AcrossProcesses)
        back_end = chosen(device, composite_kernels, captured=alone and self.streamer is None)
        self.replays = Replays(
            back_end.capture, self.memory, lambda: self.pager.fits and self.streamer is None
        )
        around = Surroundings(
            *(self.mesh, device, self.remote, self._loader, self._storer, back_end),
            *(composite_kernels, self.replays, self.collectives),
        )
        lowered, variables = Lowering(around).lower_main(ir.main_graph)
        self.main = lowered.module
        # Kernels go by the device that a thread is at, and any thread may run the program.
        self._current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        self._arguments = [self._cells[v] for v in variables]
        self.written = _written(ir.main_graph.variables, variables, lowered.writes)

    @without_torch_traces()
    def run(
        self, inputs: dict[HostToDeviceStream, np.ndarray], outputs: set[DeviceToHostStream]
    ) -> dict[DeviceToHostStream, np.ndarray]:
        """One run; arrays are `(transfers, replicas, *shape)`."""
        self._inputs = {stream: self._queue(array) for stream, array in inputs.items()}
        self._outputs = {stream: [] for stream in outputs}
        self.pager.begins()
        with torch.inference_mode(), self._current:
            self.main(*self._arguments)
            return {stream: self._collect(stream) for stream in outputs}

    def attach(self) -> None:
        """Let the processes that hold replicas find each other, where there are several."""
        if isinstance(self.collectives, AcrossProcesses):
            self.collectives.open(_collective_groupings(self.ir))

    def traffic(self) -> Traffic:
        """What this process exchanged with others so far."""
        if isinstance(self.collectives, AcrossProcesses):
            return replace(self.collectives.processes.traffic)
        return Traffic()

    def read(
        self, variable: Variable, every_replica: bool = False, held: torch.Tensor | None = None
    ) -> np.ndarray:
        """The variable's value, or that of `held`, in host shape, or `(replicas, *shape)`.

        Of groups and replicas that other processes hold it is asked from these: all must read it.
        """
        value = self._cells[variable].tensor if held is None else held
        mesh, grouping = self.mesh, _held(variable)
        apart = every_replica or grouping.num_groups > 1
        if isinstance(self.collectives, AcrossProcesses) and apart:
            value, mesh = self.collectives.everywhere(value), self.collectives.local.whole
        if variable._sharding is not None:
            parts = mesh.flat(value).flatten(1)
            return to_numpy(shards.joined(parts, variable._sharding, variable.shape, every_replica))
        value = value.reshape((*value.shape[: mesh.lead], *variable.shape))  # a slot's may differ
        if every_replica and grouping.num_groups < self.ir.replication_factor:
            return to_numpy(mesh.flat(value).clone())
        return to_numpy(mesh.to_groups(value, grouping).clone())

    def held(self, variables: Iterable[Variable] | None = None) -> dict[Variable, torch.Tensor]:
        """What variables hold now, to be given to `put` or `read`: by default all it may write."""
        chosen = self.written if variables is None else variables
        return {v: self._cells[v].share() for v in chosen}

    def put(self, held: Mapping[Variable, torch.Tensor]) -> None:
        """Let variables hold again what `held` gave."""
        for variable, tensor in held.items():
            self._cells[variable].move(tensor, True)

    @memory_told()
    def write(self, variable: Variable, array: np.ndarray) -> None:
        """Set the variable to `array`, in host shape; its memory is used as it is on a CPU."""
        self.pager.forget()
        cell = self._cells[variable]
        value = self._value(variable, array, cell.tensor)
        cell.move(value, self._is_shared(value))

    @memory_told()
    def fill(self, variable: Variable, values: np.ndarray, swapped: bool) -> None:
        """Set the variable to `values` over and over; see `Session.fill_variable_data`."""
        self.pager.forget()
        if variable._sharding is not None:
            self.write(variable, _resized(values, variable.shape_on_host, swapped))
            return
        cell, streams = self._cells[variable], self.streamer
        on_host = streams is not None and variable in streams.variables
        shape = list(self._value(variable, _blank(variable)).shape)
        if swapped:
            shape[-2:] = shape[:-3:-1]
        device = torch.device("cpu") if on_host else self.device
        value = repeated(to_torch(values), shape, device)
        value = value.transpose(-1, -2) if swapped else value
        if streams is not None and on_host:
            value = streams.hold(value, cell.tensor)
        cell.move(value, self._is_shared(value))

    def _new_cell(self, variable: Variable) -> Cell:
        value = self._value(variable, variable._data)
        cell = Cell(value, self._is_shared(value), lasting=self.memory)
        if variable._remote is not None:
            buffer, offset = variable._remote
            self.remote[buffer].place(offset, cell)
        return cell

    def _value(
        self, variable: Variable, array: np.ndarray, old: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The array where the variable's value is, which was `old`."""
        own = self.mesh.from_groups(_as_held(variable, array), _held(variable))
        if variable._remote is not None:
            own = own.reshape((*own.shape[: self.mesh.lead], *variable._remote[0].tensor_shape))
        if self.streamer is not None and variable in self.streamer.variables:
            return self.streamer.hold(own, old)
        return load(own, self.device)

    def _is_shared(self, value: torch.Tensor) -> bool:
        """Whether its memory is the host's, or that of one element is several's."""
        return value.device.type == "cpu" or 0 in value.stride()

    def _remote_store(self, buffer: RemoteBuffer) -> RemoteStore:
        lead = self.mesh.lead
        shape = (1,) * lead + buffer.tensor_shape
        dtype = buffer.tensor_dtype.as_torch()

        def zeros() -> torch.Tensor:
            if self.device.type == "cpu":
                return untouched_zeros(shape, dtype)
            return torch.zeros(shape, dtype=dtype, device=self.device)

        name = f"remote_buffer_{buffer.remote_buffer_id}"
        if self.streamer is not None and buffer in self._streamed.slots:
            on_host = self._streamed.slots[buffer]
            return StreamedStore(
                name, buffer.entries, lead, self.memory, zeros, self.streamer.lanes, on_host
            )
        return RemoteStore(name, buffer.entries, lead, self.memory, zeros, self._slot_loader())

    def _slot_loader(self) -> Callable[[torch.Tensor, str], torch.Tensor]:
        """What brings a slot to where it is computed with."""
        if self.streamer is not None:
            return self.streamer.load
        if self.device.type != "cpu":
            return _as_it_is
        pager = self.pager

        def paged(value: torch.Tensor, store: str) -> torch.Tensor:
            pager.loads(value, store)
            return value

        return paged

    def _queue(self, array: np.ndarray) -> deque[torch.Tensor]:
        transfers = to_torch(array)
        if not self.mesh.lead:
            return deque(load_stream(t[0], self.device) for t in transfers)
        return deque(
            load_stream(self.mesh.from_replicas(host, tensor), self.device)
            for host, tensor in zip(array, transfers, strict=True)
        )

    def _collect(self, stream: Stream) -> np.ndarray:
        """What was stored, `(transfers, replicas, *shape)`; zeros for transfers not made."""
        transfers = [self._on_host(self.mesh.flat(t)) for t in self._outputs[stream]]
        while len(transfers) < self.ir.num_host_transfers:
            zero = torch.zeros(1, dtype=stream.dtype.as_torch())
            transfers.append(zero.expand(self.mesh.replicas, *stream.shape))
        return to_numpy(transfers[0][None] if len(transfers) == 1 else torch.stack(transfers))

    def _on_host(self, value: torch.Tensor) -> torch.Tensor:
        if value.device.type != "cuda":
            return value.cpu()
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)  # many times faster
        host.copy_(value, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()
        return host

    def _loader(self, stream: Stream) -> Callable[[], torch.Tensor]:
        def host_load() -> torch.Tensor:
            if not self._inputs[stream]:
                raise self._too_often(stream, "loaded from")
            return self._inputs[stream].popleft()

        return host_load

    def _storer(self, stream: Stream) -> Callable[[torch.Tensor], None]:
        def host_store(value: torch.Tensor) -> None:
            if len(self._outputs[stream]) == self.ir.num_host_transfers:
                raise self._too_often(stream, "stored to")
            self._outputs[stream].append(value)

        return host_store

    def _too_often(self, stream: Stream, what: str) -> RuntimeError:
        return RuntimeError(
            f"stream {stream.tensor_id} is {what} more than {self.ir.num_host_transfers} times "
            "in a run: set ir.num_host_transfers"
        )


def _streams(ir: Ir, device: torch.device) -> tuple[Streamer | None, Streamed]:
    """What brings weights to the device where not all has room there, and what is streamed."""
    beside = lanes.lanes_of(device)
    found = None if beside is None else streamed(ir, beside)
    if beside is None or found is None:
        return None, Streamed()
    return Streamer(beside, found.variables), found


def _written(
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


def _held(variable: Variable) -> ReplicaGrouping:
    """Which replicas hold the same of it."""
    sharding = variable._sharding
    return variable.replica_grouping if sharding is None else sharding.held


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


def _as_it_is(value: torch.Tensor, store: str) -> torch.Tensor:
    """Slots on a device are no pages of files."""
    return value


def _layout(ir: Ir, device: torch.device) -> tuple[Mesh, Collectives | AcrossProcesses]:
    """The mesh of the replicas that this process holds, and the collectives on it."""
    together = ir.instance_replication_factor
    # The groupings of collectives first: they gain most.
    groupings = [*_collective_groupings(ir), *(_held(v) for v in ir.main_graph.variables)]
    mesh = Mesh(ir.replication_factor, groupings, together)
    count = ir.replication_factor // together
    if count == 1:
        return mesh, Collectives(mesh)
    local = LocalMesh(mesh, popdist.getInstanceIndex(), count)
    return local, AcrossProcesses(local, Processes(popdist.getInstanceIndex(), count, device))


def _collective_groupings(ir: Ir) -> list[ReplicaGrouping]:
    return [op.group for op in ir._reachable_ops() if facts_of(op).exchanges]
