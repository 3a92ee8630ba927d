"""A cache that does not fit a device: what is copied when, on a stand-in for its streams."""

from __future__ import annotations

import logging

import numpy as np
import popxl
import pytest
import torch
from popxl import ops
from popxl_torch.backends.cuda import lanes, room
from popxl_torch.backends.cuda.streamed_slots import StreamedStore
from popxl_torch.lowering.updates import Update
from popxl_torch.memory.cells import Lasting
from programs import store
from recording_lanes import RecordingLanes

LAYERS, ROWS, WIDTH = 6, 8, 16
SLOT = 4 * ROWS * WIDTH
ALL = LAYERS * SLOT
RUNS = 4


class Cache:
    """A program that writes a row into every layer's slot and reads the slot after that.

    Args:
        replicas: of which each has a slot of its own.
    """

    def __init__(self, replicas: int = 1):
        self.ir, self.shape = popxl.Ir(replication=replicas), (1, WIDTH)
        with self.ir.main_graph:
            self.input = popxl.h2d_stream(self.shape, popxl.float32, "x")
            self.at = popxl.h2d_stream((1,), popxl.int32, "at")
            self.output = popxl.d2h_stream(self.shape, popxl.float32, "y")
            buffer = popxl.remote_buffer((ROWS, WIDTH), popxl.float32, LAYERS)

            def layer(x, number, at):
                slot = ops.remote_load(buffer, number)
                ops.dynamic_update_(slot, at, x, [0], [1], True)
                x = x + ops.sum(slot * slot, 0, keepdims=True)
                ops.remote_store(buffer, number, slot)
                return [x * 0.5, number + 1]

            x, at = ops.host_load(self.input), ops.host_load(self.at)
            body = self.ir.create_graph(layer, x, popxl.TensorSpec((), popxl.int32), at)
            x, _ = ops.repeat(body, LAYERS, x, 0, at)
            ops.host_store(self.output, x)

    def outputs(self, runs: int = RUNS) -> np.ndarray:
        rng, replicas = np.random.default_rng(0), self.ir.replication_factor
        lead = (replicas,) if replicas > 1 else ()
        found = []
        with popxl.Session(self.ir) as session:
            for run in range(runs):
                x = rng.standard_normal((*lead, *self.shape)).astype(np.float32)
                at = np.full((*lead, 1), run % ROWS, np.int32)
                found.append(session.run({self.input: x, self.at: at})[self.output])
        return np.stack(found)


@pytest.fixture
def device(monkeypatch) -> RecordingLanes:
    device = RecordingLanes(free=10 * ALL)
    monkeypatch.setattr(lanes, "lanes_of", lambda of: device)
    monkeypatch.setattr(room, "WORK_SHARE", 0)
    monkeypatch.setattr(room, "WORK_BYTES", 0)
    return device


def kinds_of(device: RecordingLanes) -> list[str]:
    return [copy.kind for copy in device.copies]


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("slots_with_room", [0, 2, 4, 5])
def test_results_are_those_of_a_cache_that_fits(monkeypatch, device, replicas, slots_with_room):
    expected = Cache(replicas).outputs()
    assert not device.copies
    monkeypatch.setenv(room.DEVICE_MEMORY, str(replicas * SLOT * slots_with_room))
    np.testing.assert_array_equal(Cache(replicas).outputs(), expected)
    streamed = LAYERS - max(0, slots_with_room - room.SLOT_PLACES)
    assert kinds_of(device).count("copy_back") == RUNS * streamed
    assert kinds_of(device).count("copy") <= RUNS * streamed  # the last run sends for the next


def test_a_slot_is_copied_under_the_computing_of_the_one_before(monkeypatch, device):
    compute = Update.in_cell

    def watched(self, cell, *args):
        device.events.append(("computing", cell.tensor.data_ptr()))
        return compute(self, cell, *args)

    monkeypatch.setattr(Update, "in_cell", watched)
    monkeypatch.setenv(room.DEVICE_MEMORY, "0")
    Cache().outputs()
    layers = [i for i, (kind, _) in enumerate(device.events) if kind == "computing"]
    back = [copy for copy in device.copies if copy.kind == "copy_back"]
    assert len(layers) == len(back) == RUNS * LAYERS
    for computing, copy in zip(layers, back, strict=True):
        assert copy.after > computing  # what was written is there
        assert copy.address == device.events[computing][1] or computing in layers[:LAYERS]
    learned = layers[2 * LAYERS]
    sent = [c for c in device.copies if c.kind == "copy" and c.asked > learned]
    assert len(sent) >= LAYERS
    for copy in sent:
        uses = [i for i in layers if device.events[i][1] == copy.address]
        assert copy.after > max((i for i in uses if i < copy.asked), default=-1)
        first = min((i for i in uses if i > copy.asked), default=None)
        if first is not None:  # asked for before the computing of the layer ahead of its own
            assert any(copy.asked < i < first for i in layers)
            assert copy.asked < copy.waited < first


def test_the_first_run_does_not_wait_for_the_copies_of_the_layer_before(monkeypatch, device):
    monkeypatch.setenv(room.DEVICE_MEMORY, "0")
    Cache().outputs(runs=1)
    assert len(device.copies) == LAYERS
    for copy, two_later in zip(device.copies, device.copies[2:], strict=False):
        assert copy.waited is None or copy.waited >= two_later.asked


def test_what_is_not_written_is_not_copied_back(monkeypatch, device):
    monkeypatch.setenv(room.DEVICE_MEMORY, "0")
    ir = popxl.Ir()
    with ir.main_graph:
        number = popxl.h2d_stream((), popxl.int32)
        buffer = popxl.remote_buffer((4,), popxl.float32, LAYERS)
        at = ops.host_load(number)
        (output,) = store([ops.remote_load(buffer, at)])
        writes = popxl.h2d_stream((), popxl.bool)
        graph = ir.create_graph(
            lambda n: ops.remote_store(
                buffer, n, ops.cast(popxl.constant(np.arange(4)), popxl.float32)
            ),
            at,
        )
        other = ir.create_graph(lambda n: None, at)
        ops.conditional(ops.host_load(writes), graph, other, [at], [at])
    with popxl.Session(ir) as session:
        for n in range(LAYERS):
            session.run({number: np.int32(n), writes: np.bool_(n % 2)})
        found = [
            session.run({number: np.int32(n), writes: np.bool_(False)})[output]
            for n in range(LAYERS)
        ]
    np.testing.assert_array_equal(found, [np.arange(4) * (n % 2) for n in range(LAYERS)])
    assert kinds_of(device).count("copy_back") == LAYERS // 2


# --- any order ---


class Machine:
    """The same loads and stores of slots, on PopXL and on numpy."""

    def __init__(self, seed: int, replicas: int, steps: int = 25):
        self.rng, self.replicas = np.random.default_rng(seed), replicas
        self.slots = np.zeros((LAYERS, replicas, 4), np.int32)
        self.ir = popxl.Ir(replication=replicas)
        with self.ir.main_graph:
            self.offsets = popxl.h2d_stream((), popxl.int32)
            self.buffer = popxl.remote_buffer((4,), popxl.int32, LAYERS)
            offset = ops.host_load(self.offsets)
            self.steps = [self._step(offset) for _ in range(steps)]
            self.kept = [made for _, _, made in self.steps if made is not None]
            self.outputs = store(self.kept)

    def _step(self, offset: popxl.Tensor):
        kind = self.rng.choice(["load", "store", "fill", "work"])
        number = int(self.rng.integers(LAYERS)) if self.rng.random() < 0.7 else None
        at, made = offset if number is None else number, None
        if kind == "store":
            ops.remote_store(self.buffer, at, popxl.constant(np.arange(4, dtype=np.int32)) + offset)
        elif kind == "fill":  # the same in all replicas
            ops.remote_store(self.buffer, at, popxl.constant(np.full(4, 7, np.int32)))
        elif kind == "load":
            made = ops.remote_load(self.buffer, at)
        else:
            slot = ops.remote_load(self.buffer, at)
            ops.add_(slot, offset + 1)
            ops.remote_store(self.buffer, at, slot)
        return kind, number, made

    def check(self, session: popxl.Session) -> None:
        """A run, against numpy."""
        offsets = self.rng.integers(LAYERS, size=self.replicas).astype(np.int32)
        given = offsets if self.replicas > 1 else offsets[0]
        results = session.run({self.offsets: given})
        outputs = iter(self.outputs)
        replicas = np.arange(self.replicas)
        for kind, number, _ in self.steps:
            at = offsets if number is None else np.full(self.replicas, number)
            if kind == "store":
                self.slots[at, replicas] = np.arange(4) + offsets[:, None]
            elif kind == "fill":
                self.slots[at, replicas] = 7
            elif kind == "work":
                self.slots[at, replicas] += offsets[:, None] + 1
            else:
                found = results[next(outputs)].reshape(self.replicas, 4)
                np.testing.assert_array_equal(found, self.slots[at, replicas])


@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_read_after_a_store_is_what_was_stored(monkeypatch, device, replicas, seed):
    monkeypatch.setenv(room.DEVICE_MEMORY, str(seed * replicas * 16))
    machine = Machine(seed, replicas)
    with popxl.Session(machine.ir) as session:
        for _ in range(RUNS):
            machine.check(session)
    assert {"copy", "copy_back"} == set(kinds_of(device))


def test_a_slot_has_room_while_others_are_read():
    device = RecordingLanes(free=0)
    slots = StreamedStore("slots", 4, 0, Lasting(), lambda: torch.zeros(3), device, {0, 1, 2, 3})
    for number in range(4):
        slots.store(torch.full((3,), number), number)
    read = [slots.load(number) for number in range(3)]
    cell = slots.open(3)
    cell.tensor.mul_(10)
    slots.close(cell, 3)
    assert device.copies[-1].waited is not None  # its memory is nobody's from now on
    del cell
    assert [int(value[0]) for value in read] == [0, 1, 2]
    assert [int(slots.load(number)[0]) for number in range(4)] == [0, 1, 2, 30]


# --- what is streamed ---


def weights_and_cache() -> popxl.Ir:
    """As many bytes of weights as of cache."""
    ir = popxl.Ir()
    with ir.main_graph:
        shape = (ROWS, WIDTH)
        weights, cache = (popxl.remote_buffer(shape, popxl.float32, LAYERS) for _ in range(2))
        for number in range(LAYERS):
            popxl.remote_variable(np.zeros(shape, np.float32), weights, number)
        weight = ops.remote_load(weights, 0)
        ops.remote_store(cache, 0, weight)
    return ir


@pytest.mark.parametrize(
    "memory, weights, slots",
    [(12, 0, 0), (11, 3, 0), (9, 5, 0), (8, 6, 0), (7, 6, 4), (4, 6, 6), (0, 6, 6)],
)
def test_weights_are_streamed_before_the_cache(monkeypatch, device, memory, weights, slots):
    monkeypatch.setenv(room.DEVICE_MEMORY, str(memory * SLOT))
    found = room.streamed(weights_and_cache(), device) or room.Streamed()
    assert len(found.variables) == weights
    assert sum(map(len, found.slots.values())) == slots


def test_one_line_says_how_much(monkeypatch, device, caplog):
    monkeypatch.setenv(room.DEVICE_MEMORY, "0")
    with caplog.at_level(logging.WARNING):
        popxl.Session(Cache().ir)
    (line,) = caplog.messages
    assert "of caches are streamed from the host, without CUDA graphs" in line
