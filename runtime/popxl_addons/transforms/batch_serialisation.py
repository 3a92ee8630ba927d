"""Batch serialisation: a graph that runs another for one part of a batch after the other.

Each step loads the part's tensors from streams or remote buffers, calls the graph and stores what
it gives. A buffer is a table: a row for each value that the new graph is called with (the layers of
a model that share a graph), a column for each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import popxl
from popxl import ops
from popxl.ops import collectives
from popxl_shared.absent import GRADIENTS, absent

from ..graph import GraphWithNamedArgs
from ..named_tensors import NamedTensors
from ..remote import create_remote_buffer
from ..rts import gather_replica_sharded_tensor

IO_MODES = ("compute", "io", "io_overlapped")


@dataclass
class RemoteHandle:
    """Where a tensor of each step lies.

    Attributes:
        buffer: what it lies in.
        row_offset: added to the row that the graph is called with, or a function that gives
            another row for it; None for the first row, always.
        shard_group: the replicas that hold parts of it; each holds the whole where None.
    """

    buffer: popxl.RemoteBuffer
    row_offset: int | Callable[[popxl.Tensor], popxl.Tensor] | None = 0
    shard_group: popxl.ReplicaGrouping | None = None

    @property
    def _is_sharded(self) -> bool:
        return self.shard_group is not None and self.shard_group.group_size > 1

    def _entry(self, row: popxl.Tensor, step: popxl.Tensor, steps: int) -> popxl.Tensor:
        """The entry of the buffer for a step."""
        if self.row_offset is None:
            return step
        moved = self.row_offset(row) if callable(self.row_offset) else row + self.row_offset
        return moved * steps + step

    def _grow(self, rows: int, steps: int) -> None:
        """Let the buffer have the rows that are used."""
        first = self.row_offset if isinstance(self.row_offset, int) else 0
        rows = 1 if self.row_offset is None else first + rows
        self.buffer.entries = max(self.buffer.entries, rows * steps)


@dataclass
class BatchSerialResult:
    """What `batch_serialise` gives.

    Attributes:
        graph: takes a row (an int32 scalar), the seed if there is one, then the inputs of the old
            graph that are not loaded.
        stored_buffers: for tensors of the old graph, where their values lie after a run.
    """

    graph: GraphWithNamedArgs
    stored_buffers: dict[popxl.Tensor, RemoteHandle]
    _remap_dict: dict[popxl.Tensor, popxl.Tensor] = field(default_factory=dict)

    def remap_tensors(self, ts: NamedTensors) -> NamedTensors:
        """The new graph's inputs in the place of those of the old that they stand for."""
        return ts.remap(self._remap_dict)


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


def batch_serialise(
    graph: GraphWithNamedArgs,
    steps: int,
    load_handles: Mapping[popxl.Tensor, Any],
    store_streams: Mapping[popxl.Tensor, popxl.DeviceToHostStream],
    store_buffers: Mapping[popxl.Tensor, Any],
    seed_input: popxl.Tensor | None = None,
    rows: int = 1,
    io_mode: str = "io",
) -> BatchSerialResult:
    """A graph that runs `graph` for each of `steps` parts of a batch.

    Args:
        load_handles: for inputs of `graph`, the stream or `RemoteHandle` that a step's value comes
            from; `(buffer, row_offset)` also stands for a handle. Other inputs are the same in
            all steps and are inputs of the new graph.
        store_streams, store_buffers: where values of inputs and outputs go after each step. An
            input that was loaded from a buffer is not stored again.
        seed_input: an input of `graph` that gets another random seed in each step.
        rows: that the buffers are to have at least, beside the offsets.
        io_mode: "compute", "io" or "io_overlapped": which tiles of an IPU load and store, and
            when; without effect here.

    Raises:
        ValueError: for another `io_mode`; for fewer than 1 of `steps` or `rows`.
        TypeError: for a handle that is none.
    """
    if io_mode not in IO_MODES:
        raise ValueError(f"io_mode is one of {', '.join(IO_MODES)}, got {io_mode!r}")
    if steps < 1 or rows < 1:
        raise ValueError(f"steps and rows must be at least 1, got {steps} and {rows}")
    loads = {t: _handle(t, h) for t, h in load_handles.items() if t in graph.graph.inputs}
    stores = {t: _buffer_handle(t, h) for t, h in store_buffers.items()}
    return _Serialised(graph, steps, loads, dict(store_streams), stores, seed_input).built(rows)


batch_serialise_fwd_and_grad = absent("popxl_addons.batch_serialise_fwd_and_grad", GRADIENTS)


@dataclass
class _Serialised:
    """A graph, and what is loaded and stored around each call of it."""

    called: GraphWithNamedArgs
    steps: int
    loads: dict[popxl.Tensor, popxl.HostToDeviceStream | RemoteHandle]
    streams: dict[popxl.Tensor, popxl.DeviceToHostStream]
    buffers: dict[popxl.Tensor, RemoteHandle]
    seed: popxl.Tensor | None

    def built(self, rows: int) -> BatchSerialResult:
        """The graph of all steps, which repeats that of one."""
        inner = self.called.graph
        stored = {t: h for t, h in self.buffers.items() if t in inner}
        for handle in (*self.loads.values(), *stored.values()):
            if isinstance(handle, RemoteHandle):
                handle._grow(rows, self.steps)
        loop = self._loop()
        outer = inner.ir.create_empty_graph(f"{inner.name}_repeat_graph")
        with outer, popxl.in_sequence():
            row = popxl.graph_input((), popxl.int32, "row")
            seed, passed = self._seed_input(), self._passed_inputs()
            first = popxl.constant(0, popxl.int32, "first_step")
            ops.repeat(loop, self.steps, first, *seed, row, *passed.values())
        args = {name: passed[t] for name, t in self.called.args.to_dict().items() if t in passed}
        loaded = {t: h for t, h in self.loads.items() if isinstance(h, RemoteHandle)}
        return BatchSerialResult(
            GraphWithNamedArgs(outer, NamedTensors.from_dict(args)),
            {t: loaded.get(t, handle) for t, handle in stored.items()},
            passed,
        )

    def _loop(self) -> popxl.Graph:
        """The graph of one step; the number of the step and the seed go to the next."""
        loop = self.called.graph.ir.create_empty_graph(f"{self.called.graph.name}_step")
        with loop, popxl.in_sequence():
            step = popxl.graph_input((), popxl.int32, "step")
            seed = self._seed_input()
            row = popxl.graph_input((), popxl.int32, "row")
            given = self._passed_inputs()
            popxl.graph_output(step + 1)
            if self.seed is not None:
                given[self.seed], following = ops.split_random_seed(seed[0])
                popxl.graph_output(following)
            given |= {t: self._loaded(t, row, step) for t in self.loads}
            info = self.called.call_with_info(args=given)
            for t in (*self.called.graph.inputs, *self.called.graph.outputs):
                if not isinstance(self.loads.get(t), RemoteHandle):
                    self._store(t, info.graph_to_parent(t), row, step)
        return loop

    def _seed_input(self) -> list[popxl.Tensor]:
        return [] if self.seed is None else [popxl.graph_input((2,), popxl.uint32, "seed")]

    def _passed_inputs(self) -> dict[popxl.Tensor, popxl.Tensor]:
        """New inputs of the current graph for those of the called one that are not loaded."""
        graph = self.called.graph
        return {
            t: popxl.graph_input(
                t.shape, t.dtype, t.name, t in graph._by_ref_inputs, t.meta_shape or None
            )
            for t in graph.inputs
            if t not in self.loads and t is not self.seed
        }

    def _loaded(self, t: popxl.Tensor, row: popxl.Tensor, step: popxl.Tensor) -> popxl.Tensor:
        handle = self.loads[t]
        if not isinstance(handle, RemoteHandle):
            return ops.host_load(handle, t.name)
        value = ops.remote_load(handle.buffer, handle._entry(row, step, self.steps), t.name)
        if not handle._is_sharded:
            return value
        return gather_replica_sharded_tensor(value, replica_group=handle.shard_group)

    def _store(
        self, t: popxl.Tensor, value: popxl.Tensor, row: popxl.Tensor, step: popxl.Tensor
    ) -> None:
        if t in self.streams:
            ops.host_store(self.streams[t], value)
        if t in self.buffers:
            handle = self.buffers[t]
            if handle._is_sharded:
                value = collectives.replica_sharded_slice(value, handle.shard_group)
            ops.remote_store(handle.buffer, handle._entry(row, step, self.steps), value)


def _handle(t: popxl.Tensor, given: Any) -> popxl.HostToDeviceStream | RemoteHandle:
    """What an entry of `load_handles` or `store_buffers` stands for."""
    if isinstance(given, tuple) and given and isinstance(given[0], popxl.RemoteBuffer):
        return RemoteHandle(*given)
    if isinstance(given, RemoteHandle | popxl.HostToDeviceStream):
        return given
    raise TypeError(f"{t.name}: expected a RemoteHandle or a stream from the host, got {given!r}")


def _buffer_handle(t: popxl.Tensor, given: Any) -> RemoteHandle:
    handle = _handle(t, given)
    if not isinstance(handle, RemoteHandle):
        raise TypeError(f"{t.name}: store_buffers takes a RemoteHandle, got {given!r}")
    return handle
