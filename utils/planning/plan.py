"""The plan of a run: what the program needs, and what a machine makes of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from config import BloomConfig
from utils.planning.forecast import Forecast, forecast, forecasts
from utils.planning.machines import THIS, Machine, load_machine
from utils.planning.needs import Needs, needs_of
from utils.planning.streaming import Streaming, estimate
from utils.planning.this_machine import this_machine
from utils.setup import UserError


@dataclass(frozen=True)
class Question:
    """What to plan for; None where the user gave no value.

    Attributes:
        machine: a machine's name.
        machines_file: with machines beside the shipped ones.
        devices: in place of the machine's number.
        memory_bytes: in place of a device's; without a machine, of this one.
        disk_rate: in place of the machine's; without a machine, of this one's.
        context: tokens in the cache of every sequence.
    """

    machine: str | None = None
    machines_file: str | None = None
    devices: int | None = None
    memory_bytes: float | None = None
    disk_rate: float | None = None
    context: int | None = None


@dataclass(frozen=True)
class Plan:
    """The answer to a `Question`.

    Attributes:
        streaming: without a machine: what this one reads from disk for a token.
        configured: the configuration's own sharding, where the machine's devices can share it.
        forecasts: of every sharding of one replica a device, the best first.
    """

    needs: Needs
    streaming: Streaming | None = None
    machine: Machine | None = None
    configured: Forecast | None = None
    forecasts: list[Forecast] = field(default_factory=list)


def make_plan(config: BloomConfig, question: Question) -> Plan:
    """Build the program and predict what a run of it takes.

    Raises:
        UserError: where the machine is unknown or badly described, or the model cannot be sharded
            over it.
    """
    needs = needs_of(config)
    if question.machine is None:
        return Plan(needs, streaming=_streaming(needs, question))
    machine = _machine(needs, question)
    replicas, devices = config.execution.replicas, machine.devices
    shares = replicas < devices or replicas % devices == 0
    configured = forecast(needs, machine, question.context) if shares else None
    of_each = forecasts(config, machine, question.context)
    if not of_each and configured is None:
        raise UserError(f"{config.model.hf_model} cannot be sharded over {devices} devices")
    return Plan(needs, machine=machine, configured=configured, forecasts=of_each)


def _machine(needs: Needs, question: Question) -> Machine:
    if question.machine == THIS:
        machine = this_machine(needs, question.memory_bytes, question.disk_rate)
    else:
        machine = load_machine(str(question.machine), question.machines_file)
        if question.memory_bytes is not None:
            machine = dataclasses.replace(machine, memory=question.memory_bytes)
        if question.disk_rate is not None:
            machine = dataclasses.replace(machine, disk_rate=question.disk_rate)
    return machine if question.devices is None else machine.with_devices(question.devices)


def _streaming(needs: Needs, question: Question) -> Streaming:
    """What all replicas, in this process, read from disk for a token."""
    execution = needs.config.execution
    whole, folder = needs.weight_bytes_all_replicas, execution.memmap_dir
    return estimate(
        whole,
        min(whole, execution.replicas * needs.token.weight_bytes),
        execution.replicas * needs.cache_bytes,
        None if question.memory_bytes is None else int(question.memory_bytes),
        question.disk_rate,
        Path(folder).expanduser() if folder else None,
    )
