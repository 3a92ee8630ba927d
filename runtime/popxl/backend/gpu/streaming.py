"""Weights that have no room on the device: kept on the host, and copied in as they are needed.

A loop over layers loads an entry of every buffer in each round. Of a buffer whose entries do not
all fit, some stay on the device, spread evenly; the others take turns in two places there. When one
is loaded, the entry that followed it in the last run is sent to the other place, beside the
computing: its copy waits for all that the computing stream has been given by then, the last use of
what was there among it. So a layer is copied while the one before it is computed, and nothing that
is still read is written to.

Streaming waits for the link to the host, hundreds of times longer than for launches: what is gained
by CUDA graphs is nothing there, and they are off.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import torch

from popxl.backend.gpu.lanes import Lanes
from popxl.backend.placement import load
from popxl.ir import Ir
from popxl.remote_buffer import RemoteBuffer
from popxl.tensor import Variable

DEVICE_MEMORY = "POPXL_DEVICE_MEMORY"
"""Environment variable: bytes of the device's memory that may be used."""

WORK_SHARE, WORK_BYTES = 0.04, 1 << 30
"""What is left for results between ops: of the memory, and in any case."""

_NUMBERS = {"int8": 1, "uint16": 4}  # in an element of a quantised weight

PLACES = 2
"""Entries of a buffer that are on the device at a time, where it is streamed."""


def plan(ir: Ir, lanes: Lanes | None) -> Streamer | None:
    """What is to be streamed; None where all has room. Tells in one line what stays."""
    if lanes is None:
        return None
    buffers = _streamable(ir)
    replicas = ir.instance_replication_factor
    weights, slots = (size * replicas for size in ir.memory())
    streamable = sum(_bytes(variable) * replicas for v in buffers.values() for variable in v)
    given = _given_memory()
    memory = min(given, lanes.free_bytes()) if given is not None else lanes.free_bytes()
    room = memory - slots - (weights - streamable) - _work_space(ir, memory)
    if streamable <= room:
        return None
    places = sum(PLACES * _bytes(variables[0]) * replicas for variables in buffers.values())
    share = max(0.0, room - places) / max(streamable, 1)
    streamer = Streamer(lanes)
    for variables in buffers.values():
        for variable in variables:
            number = variable._remote[1]  # type: ignore[index]
            if int((number + 1) * share) == int(number * share):
                streamer.variables.add(variable)
    if not streamer.variables:
        return None
    streamed = sum(_bytes(variable) * replicas for variable in streamer.variables)
    logging.getLogger(__name__).warning(
        "weights of %.1f GB have no room in %.1f GB of device memory beside %.1f GB of caches: "
        "%.1f GB stay there, %.1f GB are streamed from the host, without CUDA graphs",
        *(size / 1e9 for size in (weights, memory, slots, weights - streamed, streamed)),
    )
    return streamer


def _streamable(ir: Ir) -> dict[RemoteBuffer, list[Variable]]:
    """The variables of buffers of several entries that the program only loads from."""
    stored = {op.buffer for op in ir._reachable_ops() if op.kind == "remote_store"}
    found: dict[RemoteBuffer, list[Variable]] = {}
    for variable in ir.main_graph.variables:
        if variable._remote is not None and variable._remote[0] not in stored:
            found.setdefault(variable._remote[0], []).append(variable)
    return {buffer: variables for buffer, variables in found.items() if len(variables) > PLACES}


def _bytes(variable: Variable) -> int:
    return variable.nelms * variable.dtype.as_numpy().itemsize


def _work_space(ir: Ir, memory: int) -> int:
    """With the largest weight as 16-bit floats, should it be in fewer bits."""
    numbers = [v.nelms * _NUMBERS.get(v.dtype.name, 0) for v in ir.main_graph.variables]
    return min(int(WORK_SHARE * memory) + WORK_BYTES, memory // 8) + 2 * max(numbers, default=0)


def _given_memory() -> int | None:
    """Raises a `ValueError` where the environment has no number of bytes."""
    given = os.environ.get(DEVICE_MEMORY)
    if given is not None and not given.isdigit():
        raise ValueError(f"{DEVICE_MEMORY} must be a number of bytes, not {given!r}")
    return None if given is None else int(given)


@dataclass
class _Held:
    """A value on the host: its elements in the order they lie in, and how they are a tensor."""

    flat: torch.Tensor
    shape: torch.Size
    strides: tuple[int, ...]

    @classmethod
    def of(cls, value: torch.Tensor, lanes: Lanes) -> _Held:
        dense = value if _is_dense(value) else value.contiguous()
        flat = lanes.pinned(dense.as_strided((dense.numel(),), (1,)))
        return cls(flat, dense.shape, dense.stride())

    @property
    def key(self) -> int:
        return self.flat.data_ptr()

    def tensor(self, memory: torch.Tensor | None = None) -> torch.Tensor:
        """The value: on the host, or in memory of the device."""
        flat = self.flat
        if memory is not None:
            flat = memory[: flat.nbytes].view(flat.dtype)
        return flat.as_strided(self.shape, self.strides)


@dataclass
class _Place:
    """Memory of the device: which value is there, and the ticket of its copy."""

    memory: torch.Tensor  # bytes
    key: int | None = None
    ticket: Any = None

    def is_read(self) -> bool:
        """Whether someone still has a tensor of this memory."""
        storage = self.memory.untyped_storage()
        return torch._C._storage_Use_Count(storage._cdata) > 2  # by `memory` and by `storage`


class Streamer:
    """Brings entries of buffers to the device.

    Attributes:
        variables: those that are streamed.
    """

    def __init__(self, lanes: Lanes):
        self.lanes = lanes
        self.variables: set[Variable] = set()
        self._held: dict[int, _Held] = {}  # by key, the address of the value
        self._places: dict[str, list[_Place]] = {}  # by store
        self._last: dict[str, int] = {}  # the key loaded last, by store
        self._next: dict[int, int] = {}  # the key that followed a key

    def hold(self, value: torch.Tensor, old: torch.Tensor | None = None) -> torch.Tensor:
        """Keep a value on the host, in place of an old one; returns what to load it by.

        One whose elements are all the same memory, such as the zeros before there are weights, is
        as good where it is.
        """
        self.lanes.settle()
        for places in self._places.values():
            for place in places:
                place.key = None
        if old is not None:
            self._held.pop(old.data_ptr(), None)
        if 0 in value.stride():
            return value
        held = _Held.of(value, self.lanes)
        self._held[held.key] = held
        return held.tensor()

    def load(self, value: torch.Tensor, store: str) -> torch.Tensor:
        """A value of a store on the device: itself, where it is not held on the host."""
        held = self._held.get(value.data_ptr())
        if held is None:
            return value if value.device == self.lanes.device else load(value, self.lanes.device)
        place = self._with(held.key, store) or self._send(held, store)
        self.lanes.wait(place.ticket)
        self._send_next(held.key, store, place)
        return held.tensor(place.memory)

    def _with(self, key: int, store: str) -> _Place | None:
        """The place where a value is, or is on its way to."""
        return next((p for p in self._places.get(store, []) if p.key == key), None)

    def _send(self, held: _Held, store: str) -> _Place:
        """A place with the value on its way to it, one that nobody reads."""
        place = self._spare(held, store)
        if place is None:  # there are few: it is forgotten when it is read
            place = _Place(self.lanes.allocate(held.flat.nbytes))
        return self._copied(held, place)

    def _send_next(self, key: int, store: str, current: _Place) -> None:
        """Send what followed a value last time to the other place, where that is no longer read."""
        last = self._last.get(store)
        if last is not None:
            self._next[last] = key
        self._last[store] = key
        following = self._held.get(self._next.get(key, key))
        if following is not None and self._with(following.key, store) is None:
            place = self._spare(following, store, current)
            if place is not None:
                self._copied(following, place)

    def _spare(self, held: _Held, store: str, current: _Place | None = None) -> _Place | None:
        """A place of the store that nobody reads, the one loaded last only if it must be."""
        size = held.flat.nbytes
        if store not in self._places:
            self._places[store] = [_Place(self.lanes.allocate(size)) for _ in range(PLACES)]
        fitting = [
            place
            for place in self._places[store]
            if place is not current and place.memory.nbytes >= size and not place.is_read()
        ]
        return min(fitting, key=lambda p: p.key == self._last.get(store), default=None)

    def _copied(self, held: _Held, place: _Place) -> _Place:
        place.key = held.key
        target = place.memory[: held.flat.nbytes].view(held.flat.dtype)
        place.ticket = self.lanes.copy(target, held.flat, self.lanes.mark())
        return place


def _is_dense(value: torch.Tensor) -> bool:
    """Whether its elements lie side by side, in whatever order."""
    step = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size > 1:
            if stride != step:
                return False
            step *= size
    return True
