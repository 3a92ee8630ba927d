"""Weights that do not fit a device: what is copied when, on a stand-in for its streams."""

from __future__ import annotations

import logging
import threading
from contextlib import nullcontext

import numpy as np
import popxl
import pytest
import torch
from popxl import ops
from popxl_torch.backends.cuda import lanes, room
from recording_lanes import RecordingLanes

LAYERS, WIDTH = 6, 64
LAYER_BYTES = 4 * WIDTH * WIDTH
ALL = LAYERS * LAYER_BYTES
RUNS = 3


@pytest.fixture
def matrices(rng) -> list[np.ndarray]:
    return [rng.standard_normal((WIDTH, WIDTH), np.float32) / 8 for _ in range(LAYERS)]


class Stack:
    """A program that multiplies by one matrix after another.

    Args:
        together: matrices that are used at a time.
    """

    def __init__(self, matrices: list[np.ndarray], together: int = 1):
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            self.input = popxl.h2d_stream((4, WIDTH), popxl.float32, "x")
            self.output = popxl.d2h_stream((4, WIDTH), popxl.float32, "y")
            buffer = popxl.remote_buffer((WIDTH, WIDTH), popxl.float32, len(matrices))
            zeros = np.zeros((WIDTH, WIDTH), np.float32)
            self.variables = [
                popxl.remote_variable(zeros, buffer, number) for number in range(len(matrices))
            ]

            def layer(x: popxl.Tensor, number: popxl.Tensor) -> list[popxl.Tensor]:
                loaded = [ops.remote_load(buffer, number + i) for i in range(together)]
                for matrix in loaded:
                    x = x @ matrix
                return [x, number + together]

            x = ops.host_load(self.input)
            body = self.ir.create_graph(layer, x, popxl.TensorSpec((), popxl.int32))
            x, _ = ops.repeat(body, len(matrices) // together, x, 0)
            ops.host_store(self.output, x)

    def session(self, matrices: list[np.ndarray]) -> popxl.Session:
        session = popxl.Session(self.ir, composite_kernels=False)
        session.write_variables_data(dict(zip(self.variables, matrices, strict=True)))
        return session


@pytest.fixture
def device(monkeypatch) -> RecordingLanes:
    """A device with room for three and a half of the six matrices."""
    device = RecordingLanes(free=10 * ALL)
    monkeypatch.setattr(lanes, "lanes_of", lambda of: device)
    monkeypatch.setattr(room, "WORK_SHARE", 0)
    monkeypatch.setattr(room, "WORK_BYTES", 0)
    monkeypatch.setenv(room.DEVICE_MEMORY, str(ALL * 7 // 12))
    return device


def watch_products(monkeypatch, device: RecordingLanes) -> None:
    from popxl_torch.backends.reference import matmul

    compute = matmul.torch.matmul

    def watched(x, w):
        device.events.append(("product", w.data_ptr()))
        return compute(x, w)

    monkeypatch.setattr(matmul.torch, "matmul", watched)


def expected_of(x: np.ndarray, matrices: list[np.ndarray]) -> np.ndarray:
    for matrix in matrices:
        x = x @ matrix
    return x


def test_results_are_those_of_weights_that_fit(device, matrices, rng):
    stack = Stack(matrices)
    with stack.session(matrices) as session:
        for _ in range(RUNS):
            x = rng.standard_normal((4, WIDTH), np.float32)
            found = session.run({stack.input: x})[stack.output]
            np.testing.assert_allclose(found, expected_of(x, matrices), atol=1e-4)
    assert device.allocated == 2 * LAYER_BYTES


def test_a_matrix_is_copied_under_the_computing_of_the_one_before(
    monkeypatch, device, matrices, rng
):
    stack = Stack(matrices)
    with stack.session(matrices) as session:
        x = rng.standard_normal((4, WIDTH), np.float32)
        session.run({stack.input: x})  # the order is learned
        session.run({stack.input: x})
        watch_products(monkeypatch, device)
        device.events.clear()
        session.run({stack.input: x})
    products = [i for i, (kind, _) in enumerate(device.events) if kind == "product"]
    copies = [device.copies[n] for kind, n in device.events if kind == "copy"]
    assert len(products) == LAYERS
    assert len(copies) == LAYERS - 1  # room for one and two places
    for copy in copies:
        uses = [i for i in products if device.events[i] == ("product", copy.address)]
        assert copy.after > max((i for i in uses if i < copy.asked), default=-1)
        first = min((i for i in uses if i > copy.asked), default=None)
        if first is not None:  # asked for before the product ahead of its own
            assert any(copy.asked < i < first for i in products)
            assert copy.waited > copy.asked


def test_one_line_says_what_stays(device, matrices, caplog):
    with caplog.at_level(logging.WARNING):
        stack = Stack(matrices)
        stack.session(matrices)
    (line,) = caplog.messages
    assert "are streamed from the host, without CUDA graphs" in line


def test_what_fits_is_not_streamed(monkeypatch, device, matrices, rng, caplog):
    monkeypatch.setenv(room.DEVICE_MEMORY, str(ALL))
    stack = Stack(matrices)
    with stack.session(matrices) as session:
        session.run({stack.input: rng.standard_normal((4, WIDTH), np.float32)})
    assert not device.copies
    assert not caplog.messages


def test_what_is_still_read_is_not_written_to(device, matrices, rng):
    stack = Stack(matrices, together=3)  # more at a time than there are places
    x = rng.standard_normal((4, WIDTH), np.float32)
    with stack.session(matrices) as session:
        for _ in range(RUNS):
            found = session.run({stack.input: x})[stack.output]
            np.testing.assert_allclose(found, expected_of(x, matrices), atol=1e-4)


def test_new_weights_are_sent_anew(device, matrices, rng):
    stack = Stack(matrices)
    x = rng.standard_normal((4, WIDTH), np.float32)
    with stack.session(matrices) as session:
        session.run({stack.input: x})
        others = [matrix[::-1].T for matrix in matrices]  # of other strides
        session.write_variables_data(dict(zip(stack.variables, others, strict=True)))
        for _ in range(RUNS):
            found = session.run({stack.input: x})[stack.output]
            np.testing.assert_allclose(found, expected_of(x, others), atol=1e-4)
        np.testing.assert_array_equal(session.get_tensor_data(stack.variables[4]), others[4])


def test_memory_that_is_no_number_is_refused(monkeypatch, device, matrices):
    monkeypatch.setenv(room.DEVICE_MEMORY, "much")
    with pytest.raises(ValueError, match="POPXL_DEVICE_MEMORY must be a number of bytes"):
        Stack(matrices).session(matrices)


# --- the lanes of CUDA, with its streams and events put out of action ---


class Event:
    """A CUDA event, or a stream: everything is done at once."""

    def __init__(self, *_):
        pass

    def record_event(self):
        return Event()

    def wait_event(self, event):
        assert isinstance(event, Event)

    def record(self, stream):
        assert isinstance(stream, Event)

    def synchronize(self):
        pass


@pytest.fixture
def cuda_lanes(monkeypatch) -> lanes.CudaLanes:
    for name in ("Stream", "Event", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Event)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda of: nullcontext())
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, pin_memory=False, **kw: empty(*args, **kw))
    return lanes.CudaLanes(torch.device("cpu"))


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("size", [1, 999, 4000])
def test_copies_are_whole(monkeypatch, cuda_lanes, pinned, size):
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: pinned)
    monkeypatch.setattr(lanes, "BOUNCE", 1000)
    source = torch.arange(size, dtype=torch.int32)
    with torch.inference_mode():
        target = cuda_lanes.allocate(4 * size).view(torch.int32)
        ticket = cuda_lanes.copy(target, source, cuda_lanes.mark())
        cuda_lanes.wait(ticket)
        cuda_lanes.settle()
        back = cuda_lanes.host_memory(4 * size).view(torch.int32)
        cuda_lanes.wait(cuda_lanes.copy_back(back, target, cuda_lanes.mark()))
    assert torch.equal(target, source)
    assert torch.equal(back, source)
    assert isinstance(ticket, Event) == pinned  # else a thread of its own fills the buffers


def test_copies_are_done_in_order(monkeypatch, cuda_lanes):
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: self.numel() == 2)
    read, bounced = threading.Event(), cuda_lanes._bounced
    monkeypatch.setattr(cuda_lanes, "_bounced", lambda *args: read.wait(5) and bounced(*args))
    with torch.inference_mode():
        target = torch.zeros(3)
        cuda_lanes.copy(target, torch.ones(3), cuda_lanes.mark())  # by the thread
        last = cuda_lanes.copy(target[:2], torch.full((2,), 2.0), cuda_lanes.mark())
        assert target.tolist() == [0, 0, 0]
        read.set()
        cuda_lanes.wait(last)
    assert target.tolist() == [2, 2, 1]


def test_the_host_s_memory_is_pinned_while_there_is_room(monkeypatch, cuda_lanes):
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: False)
    source = torch.arange(1000, dtype=torch.int32)  # 4096 bytes are taken
    monkeypatch.setattr(lanes, "available_memory", lambda: 5000)
    copy = cuda_lanes.pinned(source)
    assert copy is not source
    assert torch.equal(copy, source)
    monkeypatch.setattr(lanes, "available_memory", lambda: 4400)
    assert cuda_lanes.pinned(source) is source


def test_memory_that_the_system_does_not_pin_is_not_pinned(monkeypatch, cuda_lanes):
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: False)
    empty = torch.empty

    def refuse(*args, pin_memory=False, **options):
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*args, **options)

    monkeypatch.setattr(torch, "empty", refuse)
    source = torch.arange(1000, dtype=torch.int32)
    assert cuda_lanes.pinned(source) is source
    assert cuda_lanes.host_memory(1000).nbytes == 1000
