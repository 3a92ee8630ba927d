"""One program on one device: its mesh, its memory, its streams and its lowered main graph."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import popdist
import torch
from popxl.ir import Ir
from popxl.remote_buffer import RemoteBuffer
from popxl.replica_grouping import ReplicaGrouping
from popxl.streams import DeviceToHostStream, HostToDeviceStream

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
from popxl_torch.host_streams import HostStreams
from popxl_torch.lowering.graphs import Lowering, Surroundings
from popxl_torch.memory.cells import Lasting, RemoteStore
from popxl_torch.memory.paging import Pager
from popxl_torch.memory.system import given_bytes, untouched_zeros
from popxl_torch.replay.replay import Replays
from popxl_torch.traffic import Traffic
from popxl_torch.variables import Variables, holders_of, written

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
        self.streamer, self._streamed = _streaming(ir, device)
        self.remote = {buffer: self._remote_store(buffer) for buffer in ir._remote_buffers}
        self.streams = HostStreams(ir, self.mesh, device)
        self.variables = Variables(
            *(device, self.mesh, self.collectives, self.pager, self.streamer, self.memory),
            self.remote,
        )
        for variable in ir.main_graph.variables:
            self.variables.add(variable)
        # Collectives between processes wait on the host, which no CUDA graph can hold.
        alone = not isinstance(self.collectives, AcrossProcesses)
        back_end = chosen(device, composite_kernels, captured=alone and self.streamer is None)
        self.replays = Replays(
            back_end.capture, self.memory, lambda: self.pager.fits and self.streamer is None
        )
        around = Surroundings(
            *(self.mesh, device, self.remote, self.streams, back_end),
            *(composite_kernels, self.replays, self.collectives),
        )
        lowered, arguments = Lowering(around).lower_main(ir.main_graph)
        self.main = lowered.module
        # Kernels go by the device that a thread is at, and any thread may run the program.
        self._current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        self._arguments = [self.variables.cells[v] for v in arguments]
        self.variables.written = written(ir.main_graph.variables, arguments, lowered.writes)

    @without_torch_traces()
    def run(
        self, inputs: dict[HostToDeviceStream, np.ndarray], outputs: set[DeviceToHostStream]
    ) -> dict[DeviceToHostStream, np.ndarray]:
        """One run; arrays are `(transfers, replicas, *shape)`."""
        self.streams.begin(inputs, outputs)
        self.pager.begins()
        with torch.inference_mode(), self._current:
            self.main(*self._arguments)
            return self.streams.collect()

    def attach(self) -> None:
        """Let the processes that hold replicas find each other, where there are several."""
        if isinstance(self.collectives, AcrossProcesses):
            self.collectives.open(_collective_groupings(self.ir))

    def traffic(self) -> Traffic:
        """What this process exchanged with others so far."""
        if isinstance(self.collectives, AcrossProcesses):
            return replace(self.collectives.processes.traffic)
        return Traffic()

    def _remote_store(self, buffer: RemoteBuffer) -> RemoteStore:
        shape = (1,) * self.mesh.lead + buffer.tensor_shape
        dtype, on_cpu = buffer.tensor_dtype.as_torch(), self.device.type == "cpu"
        zeros = partial(torch.zeros, shape, dtype=dtype, device=self.device)
        if on_cpu:
            zeros = partial(untouched_zeros, shape, dtype)
        name = f"remote_buffer_{buffer.remote_buffer_id}"
        slots = name, buffer.entries, self.mesh.lead, self.memory, zeros
        if self.streamer is None:
            return RemoteStore(*slots, self.pager.loads if on_cpu else _as_it_is)
        if buffer in self._streamed.slots:
            return StreamedStore(*slots, self.streamer.lanes, self._streamed.slots[buffer])
        return RemoteStore(*slots, self.streamer.load)


def _as_it_is(value: torch.Tensor, store: str) -> torch.Tensor:
    """Slots on a device are no pages of files."""
    return value


def _streaming(ir: Ir, device: torch.device) -> tuple[Streamer | None, Streamed]:
    """What brings weights to the device where not all has room there, and what is streamed."""
    beside = lanes.lanes_of(device)
    found = None if beside is None else streamed(ir, beside)
    if beside is None or found is None:
        return None, Streamed()
    return Streamer(beside, found.variables), found


def _layout(ir: Ir, device: torch.device) -> tuple[Mesh, Collectives | AcrossProcesses]:
    """The mesh of the replicas that this process holds, and the collectives on it."""
    together = ir.instance_replication_factor
    # The groupings of collectives first: they gain most.
    groupings = [*_collective_groupings(ir), *map(holders_of, ir.main_graph.variables)]
    mesh = Mesh(ir.replication_factor, groupings, together)
    count = ir.replication_factor // together
    if count == 1:
        return mesh, Collectives(mesh)
    local = LocalMesh(mesh, popdist.getInstanceIndex(), count)
    return local, AcrossProcesses(local, Processes(popdist.getInstanceIndex(), count, device))


def _collective_groupings(ir: Ir) -> list[ReplicaGrouping]:
    return [op.group for op in ir._reachable_ops() if facts_of(op).exchanges]
