"""Weights mapped from files: read ahead and dropped by the pager, with the same values."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import popxl
import pytest
import torch
from popxl import ops
from popxl.backend import paging
from popxl.backend.memory import (
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
        self.pager = self.session._engine.pager

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


def test_the_next_slots_are_asked_for_before_they_are_used(monkeypatch):
    asked = []

    class Recorded:
        def put(self, job):
            asked.append(job)

    regions = [torch.zeros(paging.SMALL) for _ in range(6)]
    monkeypatch.setattr(paging, "resident_share", lambda region: 1.0)
    monkeypatch.setattr(paging, "mapped_files", lambda: type("All", (), {"hold": lambda *_: True}))
    monkeypatch.setattr(paging.threading.Thread, "start", lambda self: None)
    size = Region.of(regions[0]).size
    pager = paging.Pager(budget=4 * size)
    pager._jobs = Recorded()
    pager.begins()
    for tensor in regions:
        pager.loads(tensor)
    pager.begins()
    order = []
    for number, tensor in enumerate(regions * 2):
        before = len(asked)
        pager.loads(tensor)
        order += [(number, advice, region.start) for advice, region in asked[before:]]
    starts = [Region.of(t).start for t in regions]
    for number in range(1, 12):  # each one is asked for while an earlier one is in use
        wanted = starts[number % 6]
        assert any(at < number and a == WILLNEED and s == wanted for at, a, s in order)
    dropped = {s for _, a, s in order if a == PAGEOUT}
    assert dropped == set(starts[3:])  # of a budget of 4, 3 stay and 1 is read ahead


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
    pager.loads(mapped)
    mapped[5].sum()
    pager.begins()
    assert pager.streams
    assert pager._order[0].sparse


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
