"""The machine at hand as one device, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import popxl
from popxl import ops

from config import BloomConfig, ModelConfig
from utils.checkpoints.random_weights import fill_randomly
from utils.generation.loading import build
from utils.generation.passes import Passes
from utils.our_runtime import cost
from utils.our_runtime import machine as rates
from utils.planning.machines import THIS, Machine
from utils.planning.needs import Needs
from utils.planning.streaming import measured_rate

SAMPLES = 9
"""Samples of each rate, of which the median counts."""

SIDE = 1024
"""Side of the matrix that arithmetic is measured with: it stays in a processor's cache."""

PRODUCTS = 16
"""Products with this matrix in a run, one after another."""

THIN_WIDTH = 128
"""Hidden size of the thin program, where shards allow it: wide enough for the same kernels."""

PASSES = 30
"""Passes of the thin program, from whose median the seconds of a call are computed."""


def this_machine(
    needs: Needs, memory_bytes: float | None = None, disk_rate: float | None = None
) -> Machine:
    """The device that the configuration names, with its rates as measured now.

    Args:
        memory_bytes: what is free now where None.
        disk_rate: bytes a second; measured, if weights and cache are larger than memory, where
            None.
    """
    config = needs.config
    device = config.execution.device
    memory = rates.free_memory(device) if memory_bytes is None else memory_bytes
    held = needs.weight_bytes_all_replicas + config.execution.replicas * needs.cache_bytes
    if disk_rate is None and held > memory:
        folder = config.execution.memmap_dir
        disk_rate = measured_rate(Path(folder).expanduser() if folder else Path())
    with thin_program(config) as seconds_a_call, products(config) as rate:
        call, arithmetic = seconds_a_call(PASSES), rate(SAMPLES)
    return Machine(
        name=THIS,
        description=f"the {device} at hand, measured",
        devices=1,
        devices_per_host=1,
        memory=memory,
        memory_rate=statistics.median(rates.read_bandwidth(device) for _ in range(SAMPLES)),
        arithmetic={config.model.precision: arithmetic},
        disk_rate=disk_rate or 0,
        call=call,
    )


@contextmanager
def products(config: BloomConfig) -> Iterator[Callable[[int], float]]:
    """A program of products of a batch with one matrix, as the runtime computes them.

    It gives what measures: multiplications and additions a second, the median of so many runs.
    """
    rows, dtype = config.execution.batch_size, config.model.dtype
    operations = 2 * rows * SIDE * SIDE * PRODUCTS
    values = np.random.default_rng(0).standard_normal((SIDE, SIDE)) / np.sqrt(SIDE)
    ir = popxl.Ir()
    with ir.main_graph:
        # As a checkpoint has it: in rows of outputs.
        matrix = popxl.variable(values.astype(dtype.as_numpy()).T, dtype, "matrix")
        x = popxl.constant(values[:1].repeat(rows, axis=0), dtype)
        body = ir.create_graph(lambda x, matrix: x @ matrix, x, matrix)
        (product,) = ops.repeat(body, PRODUCTS, x, matrix)
        ops.host_store(popxl.d2h_stream(product.shape, dtype), product)
    with popxl.Session(ir, config.execution.device) as session:
        session.run()  # makes what is made at first use
        yield lambda runs: operations / _median_seconds(session.run, runs)


@contextmanager
def thin_program(config: BloomConfig) -> Iterator[Callable[[int], float]]:
    """The same program at the smallest width: as many calls, and almost nothing to read.

    It gives what measures: the seconds an op takes beside its work, from the median of so many
    decode passes.
    """
    config = thin_config(config)
    session = build(config)
    # Blank weights lie in no memory: the kernels that others get do not read such.
    fill_randomly(session, np.random.default_rng(0))
    rows = np.zeros(config.execution.batch_size, np.int32)
    decode = partial(Passes(config, session).decode, rows, rows)
    calls = cost(session.pass_graphs["decode"]).calls
    with session:
        decode()  # makes what is made at first use
        yield lambda passes: _median_seconds(decode, passes) / calls


def thin_config(config: BloomConfig) -> BloomConfig:
    """The configuration with as many layers, shards and sequences, and one head a shard."""
    tp1, tp2 = config.execution.tensor_parallel_1, config.execution.tensor_parallel_2
    model = ModelConfig(
        hf_model=config.model.hf_model,
        layers=config.model.layers,
        hidden_size=2 * tp1 * tp2 * max(1, THIN_WIDTH // (2 * tp1 * tp2)),
        heads=tp1,
        vocab_size=tp1,
        sequence_length=2,
        precision=config.model.precision,
    )
    return BloomConfig(model, config.execution).validate()


def _median_seconds(run: Callable[[], object], times: int) -> float:
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)
