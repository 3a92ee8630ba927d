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

THIN_WIDTH = 128
"""Of the thin program, where shards allow it: wide enough for the kernels that others get too."""

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
    with ThinProgram(config) as thin:
        call = thin.seconds_a_call()
    return Machine(
        name=THIS,
        description=f"the {device} at hand, measured",
        devices=1,
        devices_per_host=1,
        memory=memory,
        memory_rate=memory_rate(device),
        arithmetic={config.model.precision: arithmetic_rate(config)},
        disk_rate=disk_rate or 0,
        call=call,
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


class ThinProgram:
    """The same program but for its sizes: next to nothing to read, and as many calls.

    Use it inside `with`.
    """

    def __init__(self, config: BloomConfig):
        self.config = thin_config(config)
        self._session = build(self.config)
        self._passes = Passes(self.config, self._session)

    def __enter__(self) -> ThinProgram:
        self._session.__enter__()
        self._pass()  # makes what is made at first use
        return self

    def __exit__(self, *exception: object) -> None:
        self._session.__exit__(*exception)

    def seconds_a_call(self, passes: int = PASSES) -> float:
        """What an op takes beside its work: a token pass by its calls, the median of some."""
        calls = self._session.pass_graphs["token"].cost().calls
        return statistics.median(self._pass() for _ in range(passes)) / calls

    def _pass(self) -> float:
        rows = np.zeros(self.config.execution.batch_size, np.int32)
        begin = time.perf_counter()
        self._passes.token(rows, rows)
        return time.perf_counter() - begin


def thin_config(config: BloomConfig) -> BloomConfig:
    """As many layers, shards and rows; each shard has one head."""
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
