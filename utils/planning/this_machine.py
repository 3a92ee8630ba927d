"""The machine at hand as one device, measured."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
from popxl import machine as popxl_machine

from config import BloomConfig, ModelConfig
from utils.loading import build
from utils.passes import Passes
from utils.planning.machines import THIS, Machine
from utils.planning.needs import Needs
from utils.streaming import measured_rate

SAMPLES = 9
"""Of each rate; the median counts."""

SIDE = 1024
"""Of the matrix that arithmetic is measured with: it stays in a cache, so memory is no limit."""

PASSES = 30
"""Of the thin program, from whose median what a call takes is worked out."""


def this_machine(
    needs: Needs, memory_bytes: float | None = None, disk_rate: float | None = None
) -> Machine:
    """The device that the configuration names, with what is measured of it now.

    Args:
        memory_bytes: what is free now where None.
        disk_rate: bytes a second; measured, if weights and cache are larger than memory, where
            None.
    """
    config = needs.config
    device = config.execution.device
    memory = popxl_machine.free_memory(device) if memory_bytes is None else memory_bytes
    held = needs.weight_bytes_all_replicas + config.execution.replicas * needs.cache_bytes
    if disk_rate is None and held > memory:
        folder = config.execution.memmap_dir
        disk_rate = measured_rate(Path(folder).expanduser() if folder else Path())
    return Machine(
        name=THIS,
        description=f"the {device} at hand, measured",
        devices=1,
        devices_per_host=1,
        memory=memory,
        memory_rate=memory_rate(device),
        arithmetic={config.model.precision: arithmetic_rate(config)},
        disk_rate=disk_rate or 0,
        call=seconds_a_call(config),
    )


def memory_rate(device: str) -> float:
    """Bytes a second that a device reads."""
    return statistics.median(popxl_machine.read_bandwidth(device) for _ in range(SAMPLES))


def arithmetic_rate(config: BloomConfig) -> float:
    """Multiplications and additions a second, of as many rows as the batch has."""
    products, device = [(config.execution.batch_size, SIDE, SIDE)], config.execution.device
    kind = popxl_machine.fastest_matmul_type(products, config.model.dtype, device)
    rates = [popxl_machine.matmul_rate(products, kind, device) for _ in range(SAMPLES)]
    return statistics.median(rates)


def seconds_a_call(config: BloomConfig) -> float:
    """What an op takes beside its work: a token pass of the thin program, by its calls."""
    thin = thin_config(config)
    session = build(thin)
    tokens = positions = np.zeros(thin.execution.batch_size, np.int32)
    with session:
        passes = Passes(thin, session)
        passes.token(tokens, positions)
        seconds = statistics.median(
            _timed(lambda: passes.token(tokens, positions)) for _ in range(PASSES)
        )
    return seconds / session.pass_graphs["token"].cost().calls


def thin_config(config: BloomConfig) -> BloomConfig:
    """The same program but for its sizes: tensors so small that there is next to no work.

    It has as many layers, shards and rows; each shard has one head.
    """
    tp1, tp2 = config.execution.tensor_parallel_1, config.execution.tensor_parallel_2
    model = ModelConfig(
        hf_model=config.model.hf_model,
        layers=config.model.layers,
        hidden_size=tp1 * 2 * tp2,
        heads=tp1,
        vocab_size=tp1,
        sequence_length=2,
        precision=config.model.precision,
    )
    return BloomConfig(model, config.execution).validate()


def _timed(run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
