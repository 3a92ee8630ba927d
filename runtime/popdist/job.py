"""The processes that run one program together: how they meet, and how they end together.

They meet at the address that `torchrun` gives, `MASTER_ADDR` and `MASTER_PORT`, whoever started
them. From then on each watches the others (`watch.py`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist

import popdist
from popdist.meeting import JobError, Meeting
from popdist.traffic import Traffic
from popdist.watch import Watch, silence

SIOCGIFADDR = 0x8915
"""Asks Linux for an interface's address."""

FOREVER = timedelta(days=3650)
"""For collectives: whoever waits may wait for a person. Processes that fail are the watch's."""


class Job:
    """This process among those of its job.

    Attributes:
        index: of this process; `count`: of all.
        sent, received: arrays that the host exchanged, beside a program's collectives.
    """

    def __init__(self, device: str):
        self.index, self.count = popdist.getInstanceIndex(), popdist.getNumInstances()
        self.sent, self.received = Traffic(), Traffic()
        self._groups: dict[tuple[int, ...], Any] = {}
        _choose_interface()
        global _meeting
        _meeting = Meeting(silence())
        _meeting.hold()
        start, store = _meeting.start, _meeting.store
        own = dist.PrefixStore(f"{start}/watch", store.clone())
        self.watch = Watch(own, self.index, _meeting.members, _meeting.launched)
        torch.set_num_threads(_threads(self.watch.processes_here()))
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
                store=dist.PrefixStore(start, store),
                rank=self.index,
                world_size=self.count,
                timeout=FOREVER,
            )
        except RuntimeError as error:
            self.lost(error)

    def group(self, members: tuple[int, ...]) -> Any:
        """The process group of some of the processes; made at first use, by all processes."""
        if members not in self._groups:
            whole = len(members) == self.count
            self._groups[members] = (
                dist.group.WORLD if whole else dist.new_group(list(members), timeout=FOREVER)
            )
        return self._groups[members]

    def lost(self, error: Exception) -> NoReturn:
        """The connection to another process broke: leave it to the watch to say which, and why."""
        self.watch.wait_for_end()
        raise JobError(f"rank {self.index} lost another process: {str(error).splitlines()[0]}")

    def broadcast(self, array: np.ndarray) -> None:
        """Give everybody what rank 0 has in the array."""
        with (self.received if self.index else self.sent).counted(array.nbytes):
            self._wait(lambda: dist.broadcast(torch.from_numpy(array), 0))

    def send(self, array: np.ndarray, rank: int) -> None:
        """Send an array to another process, which receives it."""
        with self.sent.counted(array.nbytes):
            self._wait(lambda: dist.send(torch.from_numpy(np.ascontiguousarray(array)), rank))

    def receive(self, arrays: Sequence[np.ndarray], ranks: Sequence[int]) -> None:
        """Fill each array with what the process of that rank sends."""
        pairs = zip(arrays, ranks, strict=True)
        waiting: list[Any] = [dist.irecv(torch.from_numpy(a), rank) for a, rank in pairs]
        self.watch.collective = "a receipt", (self.index, *ranks)
        for array, receipt in zip(arrays, waiting, strict=True):
            with self.received.counted(array.nbytes):
                self._wait(receipt.wait)
        self.watch.collective = None

    def _wait(self, operation: Callable[[], Any]) -> None:
        try:
            operation()
        except RuntimeError as error:
            self.lost(error)


_job: Job | None = None
_meeting: Meeting | None = None


def join(device: str = "cpu") -> Job:
    """The job of this process, joined at the first call. All processes must join.

    Args:
        device: "cuda" for NCCL between CUDA devices besides gloo between CPUs.

    Raises:
        JobError: where the others do not come.
    """
    global _job
    if _job is None:
        _job = Job(device)
    return _job


def meeting() -> Meeting | None:
    """Of this process with the others, if it has begun."""
    return _meeting


def joined() -> Job | None:
    """The job, if this process has joined it."""
    return _job


def _threads(processes: int) -> int:
    """Of this process, so that the processes of a host share its cores.

    `torchrun` sets OMP_NUM_THREADS to 1, which is no one's choice; another number is.
    """
    given = os.environ.get("OMP_NUM_THREADS", "1")
    if given.isdigit() and int(given) > 1:
        return int(given)
    return max(1, len(os.sched_getaffinity(0)) // processes)


def _choose_interface() -> None:
    """Have gloo use the network interface by which the meeting point is reached."""
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    try:
        address = _own_address(os.environ["MASTER_ADDR"])
        found = [name for _, name in socket.if_nameindex() if address in _addresses(name)]
    except (KeyError, OSError):
        return
    if found:
        os.environ["GLOO_SOCKET_IFNAME"] = found[0]


def _own_address(host: str) -> str:
    """The address of this machine from which `host` is reached; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return probe.getsockname()[0]


def _addresses(interface: str) -> list[str]:
    """The IPv4 address of an interface, if it has one."""
    import fcntl
    import struct

    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
        except OSError:
            return []
    return [socket.inet_ntoa(answer[20:24])]
