"""Seconds a token and memory a device: what a program needs, on a machine, in every sharding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from config import BloomConfig, ConfigError
from utils.planning import collectives
from utils.planning.machines import Machine
from utils.planning.needs import Needs, needs_of
from utils.planning.streaming import spilled
from utils.setup import UserError

Place = Literal["memory", "backing memory", "disk", "nowhere"]
"""Where the weights and the cache fit: the furthest of the places that they need."""


@dataclass(frozen=True)
class Forecast:
    """One sharding on one machine. Bytes are a device's; seconds are of a token pass.

    Attributes:
        devices: those that hold replicas.
        context: tokens in the cache of every sequence.
        memory_bytes: weights and the full cache.
        backing_bytes, disk_bytes: streamed from there for a token, and for the cache also back.
        cache_bytes: of the cache, what does not fit even without weights: copied in and back.
        reading: weights and cache from the device's memory.
        arithmetic: the matmuls; overlaps with the reading.
        communication: collectives between devices.
        calls: the overhead of each op.
        streaming: copies from backing memory or disk; overlaps with all of the others.
    """

    tensor_parallel_1: int
    tensor_parallel_2: int
    devices: int
    context: int
    memory_bytes: int
    place: Place
    backing_bytes: int
    disk_bytes: int
    cache_bytes: int
    reading: float
    arithmetic: float
    communication: float
    calls: float
    streaming: float

    @property
    def fits(self) -> bool:
        return self.place != "nowhere"

    @property
    def seconds(self) -> float:
        """Seconds of a decode pass."""
        work = max(self.reading, self.arithmetic) + self.communication + self.calls
        return max(work, self.streaming)


def forecast(needs: Needs, machine: Machine, context: int | None = None) -> Forecast:
    """What a decode pass takes on a machine; a device has one replica, or several share it.

    Args:
        context: tokens in the cache of every sequence; a full one where None.

    Raises:
        UserError: where replicas cannot be shared evenly, or the machine's rate for the model's
            type is not known.
    """
    model, execution = needs.config.model, needs.config.execution
    devices = min(machine.devices, execution.replicas)
    shared_by = _replicas_per_device(execution.replicas, devices)
    context = model.sequence_length if context is None else context
    work = _work(needs, shared_by, context / model.sequence_length)
    place, backing, disk = _placed(needs.largest_part_bytes, machine, work)
    return Forecast(
        tensor_parallel_1=execution.tensor_parallel_1,
        tensor_parallel_2=execution.tensor_parallel_2,
        devices=devices,
        context=context,
        memory_bytes=work.held,
        place=place,
        backing_bytes=backing,
        disk_bytes=disk,
        cache_bytes=0 if place == "nowhere" else work.cache_beyond(machine.memory),
        reading=work.read / machine.memory_rate,
        arithmetic=work.operations / _arithmetic_rate(machine, model.precision),
        communication=collectives.seconds(needs.token.collectives, machine, shared_by),
        calls=needs.token.calls * machine.call,
        streaming=_streaming(machine, devices, backing, disk),
    )


def forecasts(config: BloomConfig, machine: Machine, context: int | None = None) -> list[Forecast]:
    """Forecasts of every sharding: first those that fit, then by seconds, then by memory."""
    of_each = [
        forecast(needs_of(sharded), machine, context)
        for sharded in shardings(config, machine.devices)
    ]
    return sorted(of_each, key=lambda f: (not f.fits, f.seconds, f.memory_bytes))


def shardings(config: BloomConfig, devices: int) -> Iterator[BloomConfig]:
    """The configuration with each (tp1, tp2) that the model admits, with one replica a device."""
    for tp1 in range(1, devices + 1):
        if devices % tp1:
            continue
        sharded = config.changed(tensor_parallel_1=tp1, tensor_parallel_2=devices // tp1)
        try:
            yield sharded.validate()
        except ConfigError:
            continue


@dataclass(frozen=True)
class _Work:
    """A device's: bytes of weights and cache, bytes that a token reads of both, operations."""

    weights: int
    cache: int
    read: int
    operations: float

    @property
    def held(self) -> int:
        return self.weights + self.cache

    def cache_beyond(self, memory: float) -> int:
        """Bytes of the cache that do not fit a memory; weights are the first to be left out."""
        return max(0, self.cache - int(memory))


def _work(needs: Needs, shared_by: int, filled: float) -> _Work:
    """Of a device with so many replicas. What they share, or use twice, is read once."""
    token, whole = needs.token, needs.weight_bytes_all_replicas
    of_weights = min(shared_by * token.weight_bytes, whole)
    of_cache = round(shared_by * token.state_bytes * filled)
    return _Work(
        weights=min(shared_by * needs.weight_bytes, whole),
        cache=shared_by * needs.cache_bytes,
        read=of_weights + of_cache,
        operations=shared_by * (token.operations - token.state_operations * (1 - filled)),
    )


def _replicas_per_device(replicas: int, devices: int) -> int:
    if replicas % devices:
        raise UserError(
            f"{replicas} replicas cannot be shared evenly by {devices} devices: "
            "give another --devices, --tensor_parallel_1 or --tensor_parallel_2"
        )
    return replicas // devices


def _arithmetic_rate(machine: Machine, precision: str) -> float:
    if precision not in machine.arithmetic:
        known = ", ".join(machine.arithmetic)
        raise UserError(
            f"machine {machine.name} has no teraflops for precision {precision}, only for {known}"
        )
    return machine.arithmetic[precision]


def _placed(largest_part: int, machine: Machine, work: _Work) -> tuple[Place, int, int]:
    """Where a device's bytes have room, and those that a token streams: backing memory, disk.

    A part of the weights is computed from the device's memory as a whole, so it must fit there.
    What is streamed of the cache is copied back as well.
    """
    memory, backing = int(machine.memory), int(machine.backing_memory)
    if work.held <= memory:
        return "memory", 0, 0
    streamed = spilled(work.held, work.read, memory)
    from_disk = spilled(work.held, work.read, memory + backing)
    if largest_part > memory:
        return "nowhere", streamed - from_disk, from_disk
    streamed += work.cache_beyond(memory)
    if work.held <= memory + backing:
        return "backing memory", streamed, 0
    on_disk = machine.disk_rate and work.cache <= memory + backing
    return "disk" if on_disk else "nowhere", streamed - from_disk, from_disk


def _streaming(machine: Machine, devices: int, backing: int, disk: int) -> float:
    """A host's devices share its disk."""
    total = backing / machine.backing_memory_rate if machine.backing_memory_rate else 0.0
    if machine.disk_rate:
        total += disk * min(devices, machine.devices_per_host) / machine.disk_rate
    return total
