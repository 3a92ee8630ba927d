"""Where tensors are when the device is not the CPU, seen on a stand-in without numbers.

None of it says that a GPU gives the right numbers: `test_cuda.py` does, where there is one.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from bloom_checkpoints import config_of, random_bloom
from popxl_torch.backends import cuda as gpu
from popxl_torch.backends.cuda import graphs as cuda
from popxl_torch.backends.reference.linear import product
from popxl_torch.backends.specs import StoredWeight
from stand_in_device import DEVICE, DeviceWatch, MixedDevices, on_stand_in

from modelling.program import hf_mapping, inference
from utils.checkpoints import random_weights
from utils.generation.passes import Passes

LENGTH, ROWS = 24, 3


class Session:
    """The passes of a program on the stand-in; logits stay there."""

    def __init__(self, session, config):
        self.passes = Passes(config, session)
        self.engine = session._executor
        self.engine.streams._collected = self.collect
        self.logits: torch.Tensor

    def collect(self, stream) -> np.ndarray:
        if self.engine.streams._outputs[stream]:
            (self.logits,) = self.engine.streams._outputs[stream]
        return np.zeros((1, self.engine.mesh.replicas, *stream.shape), np.float32)


@pytest.fixture(params=[(1, 1), (2, 2)], ids=["1x1", "2x2"])
def shards(request):
    return request.param


@pytest.fixture(params=["float32", "bfloat16"])
def precision(request):
    return request.param


@contextmanager
def session_of(monkeypatch, shards, precision="float32", graphs=False, lookup_tokens=0, **options):
    model = random_bloom(4, 131)
    config = config_of(model, *shards, LENGTH, ROWS, precision)
    execution = replace(config.execution, lookup_tokens=lookup_tokens)
    config = replace(config, execution=execution)
    monkeypatch.setenv(cuda.CUDA_GRAPHS, str(int(graphs)))
    with on_stand_in(monkeypatch):
        session = inference(config, **options)
    for _, mapping in hf_mapping(config, session.state, model):
        session.write_variables_data(mapping())
    with session:
        yield Session(session, config)


def test_the_watch_sees_mixed_devices_and_numbers_asked_for():
    on_device, host = torch.zeros(3, device=DEVICE), torch.zeros(3)
    with DeviceWatch():
        with pytest.raises(MixedDevices, match="add of"):
            on_device + host
        with pytest.raises(RuntimeError):
            on_device[0].item()


def test_the_token_pass_asks_the_device_for_nothing(monkeypatch, shards, precision):
    with session_of(monkeypatch, shards, precision) as on_device, DeviceWatch() as watch:
        on_device.passes.decode(np.array([5, 0, 130]), np.array([0, 7, LENGTH]))
        assert on_device.logits.device == DEVICE
        assert on_device.logits.shape[-2] == ROWS
        # Of the whole pass only token ids and, once a layer, positions go to the device.
        assert set(watch.copied) <= {(ROWS,), (1,) * len(on_device.engine.mesh.dims) + (ROWS,)}
        assert watch.on_device.count("scatter_") == 2 * 2  # keys and values of two layers


@pytest.fixture
def captures(monkeypatch):
    """What CUDA graphs would hold, one after the other, and those that were replayed."""
    held, replays = [], []

    def capture(run):
        with DeviceWatch() as watch:
            outputs = run()
        held.append(watch)
        return lambda: replays.append(watch), outputs

    monkeypatch.setattr(cuda, "CudaCapture", lambda: capture)
    return held, replays


def test_what_a_cuda_graph_would_hold_is_on_the_device_alone(monkeypatch, shards, captures, caplog):
    held, replays = captures
    with session_of(monkeypatch, shards, graphs=True) as on_device:
        for at in range(5):
            on_device.passes.decode(np.array([5, 0, 130]), np.array([at, at, at]))
        assert on_device.logits.device == DEVICE
    assert len(held) == 1
    assert replays == held * 3
    assert held[0].on_device.count("scatter_") == 2 * 2
    assert held[0].copied == []
    assert not caplog.messages


class Launched:
    """A kernel that does nothing."""

    def __getitem__(self, grid):
        return lambda *args, **options: None


@pytest.fixture
def kernels(monkeypatch):
    """Those of a GPU, for the stand-in: tensors without numbers need nothing done to them."""
    pytest.importorskip("triton", reason="triton is not installed: it is in requirements-dev.txt")
    from popxl_torch.backends.cuda import attention_kernels, kernels, matrix_kernels, row_kernels

    for module, names in (
        (row_kernels, ("arranged", "row_times_floats")),
        (matrix_kernels, ("finish",)),
        (attention_kernels, ("token_attention", "joined", "keep_chunk", "chunk_attention")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Launched())
    monkeypatch.setattr(gpu, "kernels_for", lambda device: kernels)


def test_the_layers_of_prompts_and_of_verified_tokens_can_be_held_by_cuda_graphs(
    monkeypatch, shards, kernels, captures, caplog
):
    held, replays = captures
    options = {"precision": "bfloat16", "graphs": True, "lookup_tokens": 3}
    with session_of(monkeypatch, shards, **options) as on_device:
        for row, start in ((0, 0), (1, 4), (2, 8), (0, 2)):
            on_device.passes.prefill(row, [1] * (start + 3), start)
        prompts, held[:], replayed = list(held), [], list(replays)
        assert len(prompts) == 2  # of the layers, and of the head
        assert replayed == prompts * 2
        for row, at in ((0, 0), (1, 4), (2, 8), (0, 2)):
            on_device.passes.verify(row, [1] * 4, at)
        assert replays[4:] == held * 2
        assert len(held) == 1
    for watch in (*prompts, *held):
        assert watch.copied == []
        assert watch.on_device
    assert not caplog.text


@pytest.mark.parametrize("tokens", [3, 20])
def test_prompt_passes_ask_the_device_for_nothing(monkeypatch, shards, precision, tokens):
    with session_of(monkeypatch, shards, precision) as on_device, DeviceWatch() as watch:
        on_device.passes.prefill(1, [1] * tokens)
        assert on_device.logits.device == DEVICE
        assert "scaled_dot_product_attention" in " ".join(watch.on_device)


def test_graphs_without_kernels_ask_the_device_for_nothing(monkeypatch, shards):
    with session_of(monkeypatch, shards, composite_kernels=False) as on_device, DeviceWatch():
        on_device.passes.prefill(1, [1] * 20)
        on_device.passes.decode(np.array([5, 0, 130]), np.array([0, 7, 20]))
        assert on_device.logits.device == DEVICE


def test_a_product_that_no_kernel_does_makes_nothing_on_the_host(monkeypatch):
    """Which would be copied to the device, where a CUDA graph cannot hold it."""
    monkeypatch.setattr(torch, "tensor", lambda *args, **options: pytest.fail("made on the host"))
    words = torch.zeros(8, 3, 4, dtype=torch.uint16, device=DEVICE)
    scale, offset = torch.zeros(2, 8, 3, 1, dtype=torch.float16, device=DEVICE)
    x = torch.zeros(5, 48, dtype=torch.bfloat16, device=DEVICE)
    with DeviceWatch() as watch:
        weight = StoredWeight(words, scale, offset)
        assert product(x, weight, 0, x.dtype).shape == (5, 8)
    assert watch.copied == []


def test_everything_that_lasts_is_on_the_device(monkeypatch, shards):
    with session_of(monkeypatch, shards) as on_device:
        on_device.passes.decode(np.zeros(ROWS, np.int32), np.zeros(ROWS, np.int32))
        engine = on_device.engine
        slots = [cell for store in engine.remote.values() for cell in store._slots.values()]
        cells = [*engine.variables.cells.values(), *slots]
        assert len(slots) > 2 * 2
        assert {cell.tensor.device for cell in cells} == {DEVICE}
        assert not any(cell.shared for cell in cells)


def test_weights_are_sent_once_and_repeated_zeros_not_at_all(monkeypatch):
    model = random_bloom(4, 131)
    config = config_of(model, 1, 1, LENGTH, ROWS)
    with on_stand_in(monkeypatch), DeviceWatch() as built:
        session = inference(config)
    assert sum(int(np.prod(shape)) for shape in built.copied) < 1000
    arrays = [mapping() for _, mapping in hf_mapping(config, session.state, model)]
    with DeviceWatch() as written:
        for mapping in arrays:
            session.write_variables_data(mapping)
    given = [array.shape for mapping in arrays for array in mapping.values()]
    assert sorted(written.copied) == sorted(given)
    assert "clone" not in written.on_device


def test_random_weights_are_made_on_the_device(monkeypatch, shards):
    config = config_of(
        random_bloom(4, 131), *shards, LENGTH, ROWS, weight_precision="int4", group_size=16
    )
    with on_stand_in(monkeypatch):
        session = inference(config)
    monkeypatch.setattr(random_weights, "POOL", 100)
    with DeviceWatch() as watch:
        random_weights.fill_randomly(session, np.random.default_rng(0))
    assert max(int(np.prod(shape)) for shape in watch.copied) == 100
    cells = session._executor.variables.cells.values()
    tensors = [cell.tensor for cell in cells if cell.tensor.numel() > 1]
    assert {t.device for t in tensors} == {DEVICE}
