"""How long collectives take: bytes by the rate of a link, and its latency for each message.

The costs are those of Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication
Operations in MPICH" (2005), without the time of the additions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from popxl.cost import Collective

from utils.planning.machines import Machine


@dataclass(frozen=True)
class Link:
    """Bytes a second in one direction, and seconds a message."""

    rate: float
    latency: float


def seconds(collectives: Counter[Collective], machine: Machine, replicas_per_device: int) -> float:
    """Seconds of all these collectives, one after another; replicas fill devices, these fill hosts.

    Replicas of one device need no link: they add up what they hold.
    """
    return sum(
        times * _seconds_of_one(called, machine, replicas_per_device)
        for called, times in collectives.items()
    )


def _seconds_of_one(called: Collective, machine: Machine, replicas_per_device: int) -> float:
    """Seconds of the groups that take longest."""
    groups = _devices_of_groups(called.group.assignment, replicas_per_device)
    across = [devices for devices in groups if len(devices) > 1]
    if not across:
        return 0.0
    sharing = max(Counter(device for devices in across for device in devices).values())
    given = called.bytes * sharing  # what the groups of one device give goes over its link
    return max(
        _SECONDS[called.kind](len(devices), given, _link(devices, machine)) for devices in across
    )


def _devices_of_groups(assignment: Sequence[int], replicas_per_device: int) -> list[set[int]]:
    groups: dict[int, set[int]] = {}
    for replica, group in enumerate(assignment):
        groups.setdefault(group, set()).add(replica // replicas_per_device)
    return list(groups.values())


def _link(devices: set[int], machine: Machine) -> Link:
    """The slowest link between these devices: every algorithm here waits for it."""
    hosts = {device // machine.devices_per_host for device in devices}
    if len(hosts) > 1:
        return Link(machine.network_rate, machine.network_latency)
    return Link(machine.link_rate, machine.link_latency)


def all_reduce(devices: int, given: float, link: Link) -> float:
    """The faster of a ring and of recursive doubling, which is for small tensors.

    Args:
        given: bytes of each device's tensor.
    """
    ring = 2 * (devices - 1) * (link.latency + given / devices / link.rate)
    doubling = math.ceil(math.log2(devices)) * (link.latency + given / link.rate)
    return min(ring, doubling)


def all_gather(devices: int, given: float, link: Link) -> float:
    """A ring: every device's tensor passes every other one."""
    return (devices - 1) * (link.latency + given / link.rate)


def reduce_scatter(devices: int, given: float, link: Link) -> float:
    """A ring: of each tensor every part but one's own is sent."""
    return (devices - 1) * (link.latency + given / devices / link.rate)


_SECONDS = {
    "all_reduce": all_reduce,
    "all_gather": all_gather,
    "reduce_scatter": reduce_scatter,
}
