"""Weights mapped from files: read ahead and dropped by the pager, with the same values."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import popxl
import pytest
import torch
from popxl import ops
from popxl_torch.memory import paging
from popxl_torch.memory.system import (
    PAGEOUT,
    WILLNEED,
    Region,
    advise,
    available_memory,
    mapped_files,
    resident_share,
)

LAYERS, WIDTH = 8, 1024
LAYER_BYTES = 4 * WIDTH * WIDTH


def mapped_layers(folder: Path) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    layers = []
    for number in range(LAYERS):
        path = folder / f"{number}.npy"
        with path.open("wb") as file:
            np.save(file, generator.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 32)
            file.flush()
            os.fsync(file.fileno())  # pages that are not on disk yet cannot be dropped
        layers.append(np.load(path, mmap_mode="r"))
    return layers


class Stack:
    """A program that multiplies by one mapped matrix after another."""

    def __init__(self, layers: list[np.ndarray]):
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            self.input = popxl.h2d_stream((4, WIDTH), popxl.float32, "x")
            self.output = popxl.d2h_stream((4, WIDTH), popxl.float32, "y")
            buffer = popxl.remote_buffer((WIDTH, WIDTH), popxl.float32, len(layers))
            for number, layer in enumerate(layers):
                popxl.remote_variable(layer, buffer, number)

            def layer(x: popxl.Tensor, number: popxl.Tensor) -> list[popxl.Tensor]:
                return [x @ ops.remote_load(buffer, number), number + 1]

            x = ops.host_load(self.input)
            body = self.ir.create_graph(layer, x, popxl.TensorSpec((), popxl.int32))
            x, _ = ops.repeat(body, len(layers), x, 0)
            ops.host_store(self.output, x)
        self.session = popxl.Session(self.ir)
        self.pager = self.session._executor.pager

    def run(self, x: np.ndarray) -> np.ndarray:
        with self.session:
            return self.session.run({self.input: x})[self.output]


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((4, WIDTH)).astype(np.float32)


def test_results_are_the_same_to_the_bit_when_memory_is_scarce(tmp_path, monkeypatch, x):
    layers = mapped_layers(tmp_path)
    monkeypatch.setenv("POPXL_MAPPED_MEMORY", str((LAYERS + 1) * LAYER_BYTES))
    plenty = Stack(layers)
    expected = [plenty.run(x) for _ in range(3)]
    monkeypatch.setenv("POPXL_MAPPED_MEMORY", str(3 * LAYER_BYTES))
    scarce = Stack(layers)
    for wanted in expected:
        np.testing.assert_array_equal(scarce.run(x), wanted)
    assert scarce.pager.streams
    assert not plenty.pager.streams


def test_used_slots_are_dropped_and_those_that_fit_stay(tmp_path, monkeypatch, x):
    layers = mapped_layers(tmp_path)
    monkeypatch.setenv("POPXL_MAPPED_MEMORY", str(3 * LAYER_BYTES))
    stack = Stack(layers)
    for _ in range(3):
        stack.run(x)
    regions = [Region.of(torch.from_numpy(np.asarray(layer))) for layer in layers]
    in_memory = wait_until(
        lambda: [resident_share(r) for r in regions],
        lambda shares: sum(shares) < 5,
    )
    assert in_memory[:2] == [1, 1]
    assert sum(in_memory) < 5, in_memory


def wait_until(look, accept, seconds: float = 20):
    """What `look` gives once it is accepted (advice is carried out in the background)."""
    end = time.monotonic() + seconds
    while not accept(seen := look()) and time.monotonic() < end:
        time.sleep(0.01)
    return seen


class Recorded:
    """An advisor that only notes what it is asked for, as `(advice, number of the slot)`."""

    def __init__(self, slots: list[torch.Tensor]):
        self.starts = [Region.of(slot).start for slot in slots]
        self.given: list[tuple[int, int]] = []
        self.waited_for: list[int] = []

    def give(self, advice: int, region: Region) -> None:
        self.given.append((advice, self.starts.index(region.start)))

    def wait(self, region: Region, seconds: float) -> None:
        self.waited_for.append(self.starts.index(region.start))

    def take(self) -> list[tuple[int, int]]:
        given, self.given = self.given, []
        return given


def pager_of(slots: list[torch.Tensor], budget: int, monkeypatch) -> tuple[paging.Pager, Recorded]:
    """A pager that takes slots for mapped, and its advice."""
    monkeypatch.setattr(paging, "resident_share", lambda region: 1.0)
    monkeypatch.setattr(paging, "mapped_files", lambda: type("All", (), {"hold": lambda *_: True}))
    pager = paging.Pager(budget)
    pager._advisor = Recorded(slots)
    return pager, pager._advisor


def test_the_next_slots_are_asked_for_before_they_are_used(monkeypatch):
    slots = [torch.zeros(paging.SMALL) for _ in range(6)]
    pager, advice = pager_of(slots, 4 * Region.of(slots[0]).size, monkeypatch)
    pager.begins()
    for slot in slots:
        pager.loads(slot, "layers")
    pager.begins()
    assert advice.take() == [(PAGEOUT, 3), (PAGEOUT, 4), (PAGEOUT, 5)]  # 3 of a budget of 4 stay
    asked, dropped = set(), set()
    for number in [0, 1, 2, 3, 4, 5] * 2:
        assert number in asked or not asked
        pager.loads(slots[number], "layers")
        for kind, slot in advice.take():
            assert slot != number or kind == WILLNEED  # what is in use is not dropped
            (asked if kind == WILLNEED else dropped).add(slot)
            (dropped if kind == WILLNEED else asked).discard(slot)
        assert len(asked - {0, 1, 2}) <= 2  # the one in use and the next
    assert dropped <= {3, 4, 5}
    assert advice.waited_for == [0, 1, 2, 3, 4, 5] * 2


def test_slots_loaded_together_are_not_dropped_before_they_are_computed_with(monkeypatch):
    """As in a loop over layers that loads the layer's weights first."""
    slots = [torch.zeros(paging.SMALL) for _ in range(8)]
    pager, advice = pager_of(slots, 4 * Region.of(slots[0]).size, monkeypatch)
    for _ in range(2):
        pager.begins()
        advice.take()
        for layer in range(4):
            dropped = []
            for part in range(2):
                pager.loads(slots[2 * layer + part], f"part_{part}")
                dropped += [slot for kind, slot in advice.take() if kind == PAGEOUT]
            assert not {2 * layer, 2 * layer + 1} & set(dropped)
    assert pager.streams
    assert dropped == [4, 5]  # the last layer's loads end the use of the one before it


def test_a_pager_waits_until_a_slot_is_asked_for(monkeypatch):
    begun, may_end = threading.Event(), threading.Event()

    def slow(region: Region, advice: int) -> bool:
        begun.set()
        return may_end.wait(20)

    monkeypatch.setattr(paging, "advise", slow)
    advisor, region = paging._Advisor(), Region(0, 1)
    advisor.give(WILLNEED, region)
    assert begun.wait(20)
    waiting = threading.Thread(target=advisor.wait, args=(region, 20))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    may_end.set()
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_table_that_rows_are_picked_from_is_not_read_ahead(tmp_path, monkeypatch):
    table = np.lib.format.open_memmap(tmp_path / "t.npy", "w+", np.float32, (1 << 14, 1024))
    table.flush()
    del table
    mapped = torch.from_numpy(np.load(tmp_path / "t.npy", mmap_mode="c"))
    region = Region.of(mapped)
    mapped.sum()
    assert advise(region, PAGEOUT)
    pager = paging.Pager(budget=region.size // 2)
    pager.begins()
    pager.loads(mapped, "table")
    mapped[5].sum()
    pager.begins()
    assert pager.streams
    assert pager._order[0] in pager._sparse


def test_memory_in_no_file_is_left_alone(x):
    layers = [np.eye(WIDTH, dtype=np.float32)] * 2
    stack = Stack(layers)
    np.testing.assert_array_equal(stack.run(x), x)
    stack.run(x)
    assert not stack.pager.streams


def test_writing_variables_starts_learning_anew(tmp_path, monkeypatch, x):
    layers = mapped_layers(tmp_path)
    monkeypatch.setenv("POPXL_MAPPED_MEMORY", str(2 * LAYER_BYTES))
    stack = Stack(layers)
    before = [stack.run(x) for _ in range(2)]
    variables = list(stack.ir.main_graph.variables)
    stack.session.write_variables_data(dict(zip(variables, layers[::-1], strict=True)))
    after = [stack.run(x) for _ in range(3)]
    expected = x
    for layer in layers[::-1]:
        expected = expected @ layer
    for result in after:
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    assert not np.array_equal(before[0], after[0])


def test_a_budget_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv("POPXL_MAPPED_MEMORY", "6GB")
    with pytest.raises(ValueError, match="POPXL_MAPPED_MEMORY.*'6GB'"):
        Stack([np.eye(WIDTH, dtype=np.float32)])


def test_what_is_known_of_memory():
    assert 0 < available_memory() < 1 << 50
    heap = Region.of(torch.zeros(1 << 20))
    assert not mapped_files().hold(heap)
