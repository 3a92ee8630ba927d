"""The machine's limits: that rates are what was read or computed by the time it took."""

from __future__ import annotations

import itertools

import popxl
import pytest
import torch
from popxl_torch import machine

PRODUCTS = [(4, 8, 16), (4, 16, 2)]
OPERATIONS = 2 * (4 * 8 * 16 + 4 * 16 * 2)


@pytest.fixture(autouse=True)
def nothing_kept():
    machine.release()
    yield
    machine.release()


@pytest.fixture
def two_seconds_each(monkeypatch):
    ticks = itertools.count(step=2)
    monkeypatch.setattr(machine.time, "perf_counter", lambda: float(next(ticks)))


def test_bandwidth_without_native_kernels_is_bytes_by_seconds(two_seconds_each, monkeypatch):
    monkeypatch.setattr(machine, "_native", lambda: None)
    assert machine.read_bandwidth(bytes_count=4096) == 2048
    assert machine.held_bytes() == 4096


@pytest.mark.parametrize("seconds, name", [(1e-9, "a native loop"), (1e9, "torch.sum of int64")])
def test_memory_is_read_by_what_reads_fastest(seconds, name, monkeypatch):
    monkeypatch.setattr(machine, "_native", lambda: lambda address, size, threads: seconds)
    monkeypatch.setattr(machine, "READ_BYTES", {"cpu": 4096})
    assert machine.reading_method() == f"{name}, {torch.get_num_threads()} threads"
    assert (machine.read_bandwidth() == 4096 / seconds) == (name == "a native loop")
    assert machine.held_bytes() == 4096


@pytest.mark.parametrize("dtype", [popxl.float32, popxl.bfloat16, popxl.float16])
def test_matmul_rate_is_operations_by_seconds(dtype, two_seconds_each):
    assert machine.matmul_rate(PRODUCTS, dtype) == OPERATIONS / 2


def test_what_is_read_is_larger_than_a_cache_and_kept():
    for _ in range(2):
        assert machine.read_bandwidth() > 0
        assert machine.held_bytes() == machine.READ_BYTES["cpu"] >= 1 << 27
    machine.release()
    assert machine.held_bytes() == 0


def test_the_type_that_multiplies_faster_is_found(monkeypatch):
    rates = {popxl.float16: 1.0, popxl.float32: 4.0, popxl.bfloat16: 9.0}
    monkeypatch.setattr(machine, "matmul_rate", lambda _, dtype, device: rates[dtype])
    assert machine.fastest_matmul_type(PRODUCTS, popxl.float16) == popxl.float32
    assert machine.fastest_matmul_type(PRODUCTS, popxl.bfloat16) == popxl.bfloat16
    assert machine.fastest_matmul_type(PRODUCTS, popxl.float32) == popxl.float32


def test_a_gpu_is_not_asked_for_another_type_and_its_memory_is_not_the_host_s(monkeypatch):
    monkeypatch.setattr(machine, "_device", lambda name: torch.device("meta"))
    monkeypatch.setattr(machine, "matmul_rate", lambda *args: pytest.fail("measured"))
    assert machine.fastest_matmul_type(PRODUCTS, popxl.float16, "cuda") == popxl.float16
    machine._keep(("there",), lambda: [torch.ones(8, device="meta")])
    machine._keep(("here",), lambda: [torch.ones(4)])
    assert machine.held_bytes() == 16


def test_another_device_is_refused():
    with pytest.raises(ValueError, match="device 'tpu'"):
        machine.read_bandwidth("tpu")
