"""The ranks that run one program together, and what they send each other beside its collectives."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from popxl_torch.traffic import Traffic

import popdist
from popdist.watch import PATIENCE, Watch

TIMEOUT = "POPDIST_TIMEOUT"
"""Environment variable: seconds that a collective may take."""

KEPT = 64
"""Published arrays that are kept: no rank is as many runs behind, as all take part in each."""

SIOCGIFADDR = 0x8915
"""Asks Linux for an interface's address."""


class Job:
    """This process among those of its job.

    Attributes:
        index: of this process; `count`: of all.
        sent, received: arrays that the host exchanged, beside a program's collectives.
    """

    def __init__(self, device: str):
        self.index, self.count = popdist.getInstanceIndex(), popdist.getNumInstances()
        self.sent, self.received = Traffic(), Traffic()
        self._timeout = timedelta(seconds=popdist.number(TIMEOUT, 2, 1800))
        self._groups: dict[tuple[int, ...], Any] = {}
        _choose_interface()
        self.watch = Watch(self.index, self.count)
        self._store = self.watch.store.clone()  # what waits here keeps no one else waiting
        self._store.set_timeout(timedelta(seconds=1))
        self._seen = [0] * self.count  # how many arrays of each rank were published, or read here
        if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # torchrun's, and no one's choice
            here = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here))
        self._turn = threading.RLock()  # held by the thread that waits for other ranks
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        given = {"store": self.watch.store, "rank": self.index, "world_size": self.count}
        self.do(lambda: dist.init_process_group(backend, timeout=self._timeout, **given))
        atexit.register(self._close)  # before the watch leaves

    def group(self, members: tuple[int, ...]) -> Any:
        """The process group of some of the processes; made at first use, by all processes."""
        if members not in self._groups:
            self._groups[members] = dist.new_group(list(members), timeout=self._timeout)
        return self._groups[members]

    def lost(self, error: Exception) -> NoReturn:
        """A collective failed: the launcher or the watch ends this process, as a rank is gone."""
        time.sleep(self.watch.silence + PATIENCE)
        first = f"{error}".partition("\n")[0]
        self.watch.fail(1, f"rank {self.index} waited in vain for another: {first}")

    def do(self, operation: Callable[[], Any]) -> Any:
        """What an operation gives in which this rank waits for others, unless one is `lost`."""
        try:
            with self._turn:
                return operation()
        except RuntimeError as error:
            self.lost(error)

    def publish(self, array: np.ndarray) -> None:
        """Let other ranks `read` an array; waits for none of them."""
        number = self._seen[self.index]
        with self.sent.counted(array.nbytes):
            self.do(lambda: self._store.set(f"{self.index}/{number}", array.tobytes()))
            self.do(lambda: self._store.delete_key(f"{self.index}/{number - KEPT}"))
        self._seen[self.index] += 1

    def read(self, array: np.ndarray, rank: int, alone: bool = False) -> None:
        """Fill an array with the next one that a rank publishes, which may take for ever.

        Args:
            alone: no other rank reads it, so that it need not be kept.
        """
        key = f"{rank}/{self._seen[rank]}"
        with self.received.counted(array.nbytes):
            while (content := self.do(lambda: self._got(key))) is None:
                pass  # here signals are handled
            array[...] = np.frombuffer(content, array.dtype).reshape(array.shape)
            if alone:
                self.do(lambda: self._store.delete_key(key))
        self._seen[rank] += 1

    def _got(self, key: str) -> bytes | None:
        """What is in the store; None where nothing comes within a second."""
        try:
            return self._store.get(key)
        except dist.DistStoreError:
            return None

    def _close(self) -> None:
        """At exit: who waits for this rank in a collective learns that it has gone.

        A thread that comes back from torch while the interpreter ends would abort the process: one
        that waits for others gets some seconds to end, and none begins to wait.
        """
        self._turn.acquire(timeout=PATIENCE)  # for good
        self._groups.clear()
        if dist.is_initialized():
            dist.destroy_process_group()


_job: Job | None = None


def join(device: str = "cpu") -> Job:
    """The job of this process, joined at the first call. All processes must join.

    Args:
        device: "cuda" for NCCL between CUDA devices besides gloo between CPUs.

    Raises:
        ValueError: there is no launcher, or a time limit is no number.
    """
    global _job
    if _job is None:
        _job = Job(device)
    return _job


def _choose_interface() -> None:
    """Have gloo listen on the network interface alone that reaches the store."""
    with contextlib.suppress(KeyError, OSError), socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ["MASTER_ADDR"], 9))  # sends nothing
        own = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = struct.pack("256s", name.encode())
                if fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24] == own:
                    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
