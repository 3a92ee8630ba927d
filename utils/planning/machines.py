"""Descriptions of machines, read from YAML."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config.config import PRECISIONS, REPOSITORY
from utils.escaping import shown
from utils.outside import read_yaml
from utils.setup import UserError

MACHINES_FILE = REPOSITORY / "config" / "machines.yml"
THIS = "this"
"""The name of the machine at hand."""

SCALES = {"_gb": 1e9, "_gb_per_s": 1e9, "_us": 1e-6}
"""From a setting's unit to bytes, bytes a second and seconds."""


@dataclass(frozen=True)
class Machine:
    """Devices and what is between them; bytes, bytes a second, operations a second and seconds.

    Attributes:
        devices: how many there are.
        devices_per_host: that share one host.
        memory, memory_rate: of a device.
        arithmetic: multiplications and additions a second of a device, by type.
        backing_memory, backing_memory_rate: of a device's share of memory further away; 0: none.
        disk_rate: of a host; 0: none.
        link_rate, link_latency: between two devices of a host; rate 0: none.
        network_rate, network_latency: between two devices of different hosts; rate 0: none.
        call: that each op takes beside its work.
        assumed: settings that no specification gives and nobody measured.
    """

    name: str
    description: str
    devices: int
    devices_per_host: int
    memory: float
    memory_rate: float
    arithmetic: dict[str, float] = field(default_factory=dict)
    backing_memory: float = 0
    backing_memory_rate: float = 0
    disk_rate: float = 0
    link_rate: float = 0
    link_latency: float = 0
    network_rate: float = 0
    network_latency: float = 0
    call: float = 0
    assumed: tuple[str, ...] = ()

    def with_devices(self, devices: int) -> Machine:
        """The same with another number of devices.

        Raises:
            UserError: where they need a network and its rate is not known.
        """
        machine = dataclasses.replace(self, devices=devices)
        _check_rates(machine, f"machine {self.name}")
        return machine


NUMBERS = {
    "memory_gb": "memory",
    "memory_gb_per_s": "memory_rate",
    "backing_memory_gb": "backing_memory",
    "backing_memory_gb_per_s": "backing_memory_rate",
    "disk_gb_per_s": "disk_rate",
    "link_gb_per_s": "link_rate",
    "link_latency_us": "link_latency",
    "network_gb_per_s": "network_rate",
    "network_latency_us": "network_latency",
    "call_us": "call",
}
"""Settings that are numbers with a unit, and the attribute each becomes."""

COUNTS = ("devices", "devices_per_host")
REQUIRED = ("devices", "memory_gb", "memory_gb_per_s", "teraflops")
KNOWN = ("description", *COUNTS, "teraflops", *NUMBERS, "assumed")


def load_machine(name: str, file: str | Path | None = None) -> Machine:
    """The machine `name` of a file of one's own, or of those that are shipped.

    Raises:
        UserError: for a file that cannot be read, an unknown name, or a setting that is unknown,
            missing or not possible.
    """
    files = [MACHINES_FILE] if file is None else [Path(file), MACHINES_FILE]
    machines = {path: _read(path) for path in files}
    for path, known in machines.items():
        if name in known:
            return _machine(name, known[name], f"machine {name} of {path}")
    names = sorted({str(n) for known in machines.values() for n in known} | {THIS})
    raise UserError(f"unknown machine {name!r}; known: {', '.join(names)}")


def _read(file: Path) -> dict[str, Any]:
    machines = read_yaml(file, UserError)
    if not isinstance(machines, dict):
        raise UserError(f"{file} must map names of machines to their settings")
    return machines


def _machine(name: str, settings: Any, place: str) -> Machine:
    if not isinstance(settings, dict):
        raise UserError(f"{place} must map settings to values, not be {shown(settings)}")
    if unknown := [str(key) for key in settings if key not in KNOWN]:
        raise UserError(f"{place}: unknown {', '.join(unknown)}; known: {', '.join(KNOWN)}")
    if missing := [key for key in REQUIRED if key not in settings]:
        raise UserError(f"{place} lacks {', '.join(missing)}")
    for key in set(COUNTS) & set(settings):
        _check_count(settings[key], key, place)
    numbers = {
        attribute: _scaled(settings[key], key, place)
        for key, attribute in NUMBERS.items()
        if key in settings
    }
    devices: int = settings["devices"]
    machine = Machine(
        name=name,
        description=str(settings.get("description", name)),
        devices=devices,
        devices_per_host=settings.get("devices_per_host", devices),
        arithmetic=_arithmetic(settings["teraflops"], place),
        assumed=_assumed(settings, place),
        **numbers,
    )
    _check_rates(machine, place)
    return machine


def _check_count(value: Any, key: str, place: str) -> None:
    if type(value) is not int or value < 1:
        raise UserError(f"{place}: {key} must be an integer, 1 or more, not {shown(value)}")


def _scaled(value: Any, key: str, place: str) -> float:
    least = "over 0" if key in REQUIRED else "0 or more"
    number = type(value) in (int, float) and math.isfinite(value)
    if not number or value < 0 or (key in REQUIRED and value == 0):
        raise UserError(f"{place}: {key} must be a number {least}, not {shown(value)}")
    unit = max((u for u in SCALES if key.endswith(u)), key=len)
    return value * SCALES[unit]


def _arithmetic(rates: Any, place: str) -> dict[str, float]:
    if not isinstance(rates, dict) or not rates:
        raise UserError(f"{place}: teraflops must map types to numbers, not be {shown(rates)}")
    for kind, rate in rates.items():
        if kind not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise UserError(f"{place}: teraflops: unknown type {shown(kind)}; known: {known}")
        if type(rate) not in (int, float) or not 0 < rate < math.inf:
            raise UserError(
                f"{place}: teraflops: {kind} must be a number over 0, not {shown(rate)}"
            )
    return {kind: rate * 1e12 for kind, rate in rates.items()}


def _assumed(settings: dict[str, Any], place: str) -> tuple[str, ...]:
    named = settings.get("assumed", [])
    if not isinstance(named, list) or not all(key in settings for key in map(str, named)):
        raise UserError(f"{place}: assumed must list settings that are given, not {shown(named)}")
    return tuple(map(str, named))


def _check_rates(machine: Machine, place: str) -> None:
    """Raises a `UserError` where there is something between which nothing is said to move."""
    if machine.backing_memory and not machine.backing_memory_rate:
        raise UserError(f"{place}: backing_memory_gb needs backing_memory_gb_per_s over 0")
    count = machine.devices
    if count > 1 and machine.devices_per_host > 1 and not machine.link_rate:
        raise UserError(f"{place}: {count} devices need link_gb_per_s over 0")
    if count > machine.devices_per_host and not machine.network_rate:
        hosts = f"{count} devices, {machine.devices_per_host} a host,"
        raise UserError(f"{place}: {hosts} need network_gb_per_s over 0")
