"""What the back end has for CUDA devices, as far as it can be run on a CPU."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from popxl_torch.backends.cuda import graphs as cuda
from popxl_torch.backends.cuda.graphs import CudaCapture, CudaGraphs
from popxl_torch.backends.reference.indexing import dynamic_slice, picked_range
from popxl_torch.backends.reference.rows_attention import rows_attention
from popxl_torch.backends.specs import AttentionSpec
from popxl_torch.memory.cells import Cell, Lasting
from popxl_torch.replay.decisions import numbers
from popxl_torch.replay.replay import Replays

BATCH, HEADS, LENGTH, HEAD_DIM = 3, 2, 9, 4
CPU = torch.device("cpu")


def attention_in_numpy(q, keys, values, slopes, positions) -> np.ndarray:
    """For each row and head, over the keys up to the row's position."""
    result = np.empty_like(q)
    for row, at in enumerate(positions):
        distance = np.arange(at + 1) - at
        for head, slope in enumerate(slopes):
            scores = keys[row, head, : at + 1] @ q[row, head] / np.sqrt(HEAD_DIM)
            weights = np.exp(scores + slope * distance)
            result[row, head] = weights / weights.sum() @ values[row, head, : at + 1]
    return result


@pytest.mark.parametrize("replicas", [0, 2])
def test_attention_over_whole_rows(rng, replicas):
    mesh, count = ((replicas,), replicas) if replicas else ((), 1)
    q, k, v = rng.standard_normal((3, count, BATCH, HEADS, HEAD_DIM), np.float32)
    caches = rng.standard_normal((2, count, BATCH, HEADS, LENGTH, HEAD_DIM), np.float32)
    slopes = rng.random((count, HEADS), np.float32)
    positions = np.array([0, 5, LENGTH - 1], np.int32)
    expected = []
    for i in range(count):
        keys, values = caches[:, i].copy()
        keys[np.arange(BATCH), :, positions], values[np.arange(BATCH), :, positions] = k[i], v[i]
        expected.append(attention_in_numpy(q[i], keys, values, slopes[i], positions))

    def value(array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array if replicas else array[0])

    cells = Cell(value(caches[0]), shared=False), Cell(value(caches[1]), shared=False)
    at = torch.tensor(positions).reshape((1,) * len(mesh) + (-1,))
    spec = AttentionSpec(len(mesh), "token of each row")
    done = rows_attention(spec, (value(q), value(k), value(v)), cells, value(slopes), at)
    np.testing.assert_allclose(done, value(np.stack(expected)), atol=1e-5)
    for new, cell in ((k, cells[0]), (v, cells[1])):
        np.testing.assert_array_equal(cell.tensor[..., 1, :, 5, :], value(new)[..., 1, :, :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint16])
@pytest.mark.parametrize("start", [[0, 0], [2, 4], [3, 1], [-1, 9]])  # the last two stick out
def test_a_range_is_picked_by_numbers_that_python_does_not_know(start, dtype):
    x = torch.arange(2 * 5 * 6).reshape(2, 5, 6).to(dtype)
    axes, sizes, index = (-2, -1), (3, 2), torch.tensor(start, dtype=torch.int32)
    found = picked_range(x, index, axes, sizes)
    assert torch.equal(found, dynamic_slice(x, index, 0, axes, sizes))


class Scaled(torch.nn.Module):
    """`x` times what the cell holds; counts its runs."""

    runs = 0

    def forward(self, x: torch.Tensor, cell: Cell) -> tuple[torch.Tensor]:
        self.runs += 1
        return (x * cell.tensor,)


class Captures:
    """Stands in for the capture by CUDA: a replay runs on the same memory again."""

    def __init__(self):
        self.count, self.replays = 0, 0

    def __call__(self, run):
        self.count += 1
        outputs = run()

        def replay():
            self.replays += 1
            for held, new in zip(outputs, run(), strict=True):
                held.copy_(new)

        return replay, outputs


def lasting(value: float) -> Cell:
    return Cell(torch.full((2,), value), shared=False, lasting=Lasting())


def replayed(module, capture, memory=None, device=CPU, constants=frozenset()) -> torch.nn.Module:
    """What runs a graph in a session with this memory."""
    replays = Replays(CudaGraphs(device, capture), memory or Lasting(), lambda: True)
    return replays.of(module, constants)


def test_the_third_run_is_a_replay_on_its_own_inputs():
    capture, cell = Captures(), lasting(3.0)
    graphed = replayed(Scaled(), capture, cell.lasting)
    results = [graphed(torch.full((2,), float(i)), cell)[0] for i in range(5)]
    assert [r.tolist() for r in results] == [[3.0 * i] * 2 for i in range(5)]
    assert (capture.count, capture.replays) == (1, 3)


def test_what_is_written_between_replays_is_seen_and_moved_memory_is_captured_anew():
    capture, cell, x = Captures(), lasting(3.0), torch.ones(2)
    graphed = replayed(Scaled(), capture, cell.lasting)
    for _ in range(3):
        graphed(x, cell)
    cell.write(torch.full((2,), 4.0))
    assert graphed(x, cell)[0].tolist() == [4.0, 4.0]
    assert capture.count == 1
    cell.move(torch.full((2,), 5.0), False)
    assert [graphed(x, cell)[0].tolist() for _ in range(3)] == [[5.0, 5.0]] * 3
    assert capture.count == 2


class Stepped(torch.nn.Module):
    """`x` plus a number that Python decides by."""

    def forward(self, x: torch.Tensor, number: torch.Tensor) -> tuple[torch.Tensor]:
        return (x + numbers(number)[0],)


@pytest.mark.parametrize("constants, captured", [(frozenset({1}), 1), (frozenset(), 0)])
def test_a_constant_input_is_left_where_it_is(monkeypatch, constants, captured):
    capture, meta = Captures(), torch.device("meta")
    moved = []
    monkeypatch.setattr(cuda, "move", lambda x, device: moved.append(x) or x)
    device = meta if constants else CPU
    graphed = replayed(Stepped(), capture, None, device, constants)
    results = [graphed(torch.full((2,), float(i)), torch.tensor([5]))[0] for i in range(4)]
    assert [r.tolist() for r in results] == [[5.0 + i] * 2 for i in range(4)]
    assert capture.count == captured
    assert len(moved) == 2 - len(constants)


def test_another_shape_is_not_replayed():
    capture, cell = Captures(), lasting(3.0)
    graphed = replayed(Scaled(), capture, cell.lasting)
    for _ in range(3):
        graphed(torch.ones(2), cell)
    assert graphed(torch.ones(4, 2), cell)[0].shape == (4, 2)


def test_a_capture_that_fails_is_said_once_and_not_tried_again(caplog):
    def fail(run):
        raise RuntimeError("operation not permitted when stream is capturing\ntrace")

    module, cell = Scaled(), lasting(3.0)
    graphed = replayed(module, fail, cell.lasting)
    results = [graphed(torch.ones(2), cell)[0].tolist() for _ in range(6)]
    assert results == [[3.0, 3.0]] * 6
    assert module.runs == 6
    assert caplog.messages == [
        "run without a CUDA graph: operation not permitted when stream is capturing"
    ]


def test_what_decides_by_numbers_on_the_device_is_not_captured(caplog):
    class Picks(torch.nn.Module):
        def forward(self, x: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor]:
            return (x[numbers(index)[0]],)

    capture = Captures()
    graphed = replayed(Picks(), capture)
    x = torch.arange(4.0)
    assert [graphed(x, torch.tensor([i]))[0].item() for i in range(4)] == [0, 1, 2, 3]
    assert capture.count == 0
    assert not caplog.messages


def test_products_are_summed_up_in_float32():
    products = torch.backends.cuda.matmul
    flags = [f"allow_{kind}_reduced_precision_reduction" for kind in ("bf16", "fp16")]
    before = [getattr(products, flag) for flag in flags]
    try:
        for flag in flags:
            setattr(products, flag, True)
        cuda.sum_in_float32()
        assert [getattr(products, flag) for flag in flags] == [False, False]
    finally:
        for flag, value in zip(flags, before, strict=True):
            setattr(products, flag, value)


# --- captures by PyTorch's own context manager, with the device put out of action ---


@pytest.fixture
def streams(monkeypatch) -> list:
    """The streams that one after the other became the current one, the current one last."""
    current = ["computing"]

    @contextmanager
    def stream(other):
        current.append(other)
        yield
        current.pop()

    for module, name, value in (
        (torch.cuda, "CUDAGraph", Graph),
        (torch.cuda, "stream", stream),
        (torch.cuda, "current_stream", lambda: current[-1]),
        (torch.cuda, "set_stream", current.append),
        (torch.cuda, "Stream", object),
        (torch.cuda, "synchronize", lambda: None),
        (torch.cuda, "empty_cache", lambda: None),
        (torch._C, "_host_emptyCache", lambda: None),
    ):
        monkeypatch.setattr(module, name, value, raising=False)
    return current


class Graph:
    """A CUDA graph: in which memory it was captured, and whether that can end."""

    fails = False

    def capture_begin(self, memory=None, **options):
        self.memory = object() if memory is None else memory

    def capture_end(self):
        if self.fails:
            raise RuntimeError("operation failed due to a previous error during capture")

    def pool(self):
        return self.memory

    def replay(self):
        return self.memory


def test_after_a_capture_that_fails_the_stream_is_the_one_before(monkeypatch, streams):
    monkeypatch.setattr(Graph, "fails", True)
    seen = []

    def run():
        seen.append(streams[-1])
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="operation not permitted"):
        CudaCapture()(run)
    assert streams[-1] == "computing"
    assert seen != ["computing"]


def test_graphs_of_a_session_share_their_memory_and_no_others_have_it_or_their_stream(streams):
    capture, another, seen = CudaCapture(), CudaCapture(), []

    def captured_by(capture):
        replay, _ = capture(lambda: seen.append(streams[-1]))
        return replay

    first, second, third = map(captured_by, (capture, capture, another))
    assert first() is second()
    assert first() is not third()
    assert seen[0] is seen[1] is not seen[2]
    del first
    memory = second()
    assert captured_by(capture)() is memory
    del second  # the memory of graphs of which none is left is no longer there
    assert captured_by(capture)() is not memory
    assert captured_by(another)() is third()
