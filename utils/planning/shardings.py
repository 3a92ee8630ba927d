"""Every way to shard a model over a machine's devices, fastest first."""

from __future__ import annotations

from collections.abc import Iterator

from config import BloomConfig, ConfigError
from utils.planning.forecast import Forecast, forecast
from utils.planning.machines import Machine
from utils.planning.needs import needs_of


def shardings(config: BloomConfig, devices: int) -> Iterator[BloomConfig]:
    """The configuration with each (tp1, tp2) that the model admits, with one replica a device."""
    for tp1 in range(1, devices + 1):
        if devices % tp1:
            continue
        sharded = config.changed(tensor_parallel_1=tp1, tensor_parallel_2=devices // tp1)
        try:
            yield sharded.validate()
        except ConfigError:
            continue


def forecasts(config: BloomConfig, machine: Machine, context: int | None = None) -> list[Forecast]:
    """Forecasts of every sharding: first those that fit, then by seconds, then by memory."""
    of_each = [
        forecast(needs_of(sharded), machine, context)
        for sharded in shardings(config, machine.devices)
    ]
    return sorted(of_each, key=lambda f: (not f.fits, f.seconds, f.memory_bytes))
