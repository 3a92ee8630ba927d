"""The ranks that run one program meet at their launcher's store, exchange arrays, end together.

Each rank sets a heartbeat from a thread of its own, which also runs while the program computes or
waits for a person. The first rank that misses another, or that ends the job, writes how it ended
under one key; the others exit when they read it, and one process of each launcher says why.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
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

LIMITS = {"POPDIST_WAIT": 120, "POPDIST_SILENCE": 20, "POPDIST_TIMEOUT": 1800}
"""Environment variables and defaults, in seconds: how long ranks wait for each other to start,
after how long without a heartbeat one is lost, and how long a collective may take."""

LOOK, PATIENCE = 0.25, 2.0
"""Seconds between two looks at the store, and for which a rank that knows why the job ended stays,
as its launcher may hold the store where others read it."""

KEPT = 8
"""Published arrays that are kept: no rank is as many runs behind, as all take part in each."""

CAUSES = "it has died or is stopped, or its machine or the network is down"
END, LEFT = "end", "left"
SIOCGIFADDR = 0x8915  # asks Linux for an interface's address


class Job:
    """This process among those of its job; made once all have come, or the process ends.

    Attributes:
        index: of this process; `count`: of all.
        sent, received: arrays that the host exchanged, beside a program's collectives.
    """

    def __init__(self, device: str):
        self.index, self.count = popdist.getInstanceIndex(), popdist.getNumInstances()
        self._wait, self._silence, timeout = (popdist.number(n, 2, s) for n, s in LIMITS.items())
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            raise ValueError("several ranks need a launcher: start them by `python -m popdist.run`")
        self.sent, self.received = Traffic(), Traffic()
        self._name = f"rank {self.index} (process {os.getpid()} on {socket.gethostname()})"
        self._beats: dict[int, tuple[str, float]] = {}  # the last of each rank, and when
        self._looked, self._launcher = float("inf"), os.getppid()
        self._ending, self._exiting = False, threading.Lock()
        self._met, self._closing = threading.Event(), threading.Event()
        self._store: Any = None
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        atexit.register(self.leave)
        self._meet()
        self._seen = [0] * self.count  # how many arrays of each rank were published, or read here
        if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # torchrun's, and no one's choice
            here = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here))
        self._groups: dict[tuple[int, ...], Any] = {}
        self._timeout = timedelta(seconds=timeout)
        self._turn = threading.RLock()  # held by the thread that waits for other ranks
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        given = self._timeout, self.count, self.index, self._store
        self.do(lambda: dist.init_process_group(backend, None, *given))
        atexit.register(self._close)  # before it leaves

    def _meet(self) -> None:
        """Wait until all have come; signals are handled meanwhile."""
        until = time.monotonic() + self._wait
        while not self._met.wait(LOOK):
            if time.monotonic() > until:
                absent = ", ".join(f"{r}" for r in range(self.count) if r not in self._beats)
                more = f"{self._wait} s: set POPDIST_WAIT to more if they start later"
                self._fail(2, f"of {self.count} ranks, {absent} did not come within {more}")

    def group(self, members: tuple[int, ...]) -> Any:
        """The process group of some of the processes; made at first use, by all processes."""
        if members not in self._groups:
            self._groups[members] = dist.new_group(list(members), timeout=self._timeout)
        return self._groups[members]

    def do(self, operation: Callable[[], Any]) -> Any:
        """What an operation gives in which this rank waits for others; ends where one is gone."""
        try:
            with self._turn:
                return operation()
        except RuntimeError as error:
            time.sleep(self._silence + PATIENCE)  # who knows which one is gone ends this process
            first = f"{error}".partition("\n")[0]
            self._fail(1, f"rank {self.index} waited in vain for another: {first}")

    def publish(self, array: np.ndarray) -> None:
        """Let other ranks `read` an array; waits for none of them."""
        number = self._seen[self.index]
        with self.sent.counted(array.nbytes):
            self.do(lambda: self._arrays.set(f"{self.index}/{number}", array.tobytes()))
            self.do(lambda: self._arrays.delete_key(f"{self.index}/{number - KEPT}"))
        self._seen[self.index] += 1

    def read(self, array: np.ndarray, rank: int) -> None:
        """Fill an array with the next one that a rank publishes, which may take for ever."""
        key = f"{rank}/{self._seen[rank]}"
        with self.received.counted(array.nbytes):
            while (content := self.do(lambda: self._got(key))) is None:
                pass  # here signals are handled
            array[...] = np.frombuffer(content, array.dtype).reshape(array.shape)
        self._seen[rank] += 1

    def _got(self, key: str) -> bytes | None:
        """What is in the store; None where nothing comes within a second."""
        try:
            return self._arrays.get(key)
        except dist.DistStoreError:
            return None

    # --- the thread ---

    def _watch(self) -> None:
        """Meet the others at the store, and look at their heartbeats there until the end."""
        silent = f"has not answered for {self._silence} s: {CAUSES}"
        try:
            while not self._closing.wait(LOOK):
                alarm = threading.Timer(self._silence, self._lose_store, [silent])
                alarm.start()  # a store that is cut off keeps this thread waiting
                if self._store is None:
                    self._connect()
                self._watched.set(f"beat/{self.index}", f"{self._name} {time.monotonic()}")
                if self._watched.check([END]) and not self._ending:
                    status, reason = json.loads(self._watched.get(END))
                    self._watched.set(f"beat/{self.index}", LEFT)
                    self._exit(int(status), str(reason))
                self._judge(time.monotonic())
                alarm.cancel()
            self._watched.set(f"beat/{self.index}", LEFT)
        except (dist.DistError, OSError):
            self._lose_store("has ended, and with it the store")
        except Exception as error:  # whatever a stranger's text leads to
            self._lose_store(f"holds a store to which another program writes: {error!r:.80}")

    def _connect(self) -> None:
        """Connect to the store. Gloo is to listen on the interface alone that reaches it."""
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        with socket.create_connection(where) as probe:  # torch prints its stack if nobody answers
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode())
                with contextlib.suppress(OSError):
                    address = socket.inet_ntoa(fcntl.ioctl(probe, SIOCGIFADDR, request)[20:24])
                    if address == probe.getsockname()[0]:
                        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        limit = timedelta(seconds=self._wait + self._silence)
        store: Any = dist.TCPStore(*where, None, False, limit, wait_for_workers=False)
        start = f"popdist/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        # What waits at one of them keeps no one else waiting.
        stores: list[Any] = [
            dist.PrefixStore(f"{start}/{use}", store.clone()) for use in ("watch", "data", "gloo")
        ]
        self._watched, self._arrays, self._store = stores
        self._arrays.set_timeout(timedelta(seconds=1))

    def _judge(self, now: float) -> None:
        """Find who has come, and who is lost."""
        stopped = now - self._looked > self._silence / 2  # this one: the others may have been, too
        self._looked = now
        for rank in [r for r in range(self.count) if self._watched.check([f"beat/{r}"])]:
            beat = self._watched.get(f"beat/{rank}").decode(errors="replace")
            last, since = self._beats.get(rank, (None, now))
            if beat != last or stopped:
                self._beats[rank] = beat, now
            elif now - since > self._silence and beat != LEFT and not self._ending:
                name = beat.rpartition(" ")[0]
                self._fail(1, f"{name} has not answered for {now - since:.0f} s: {CAUSES}")
        if os.getppid() != self._launcher and not self._ending:
            self._fail(1, f"the launcher of {self._name} has ended")
        if len(self._beats) == self.count:
            self._met.set()

    # --- endings ---

    def end(self, status: int, reason: str = "") -> None:
        """End the job on all ranks but this one, with a status and one line that says why."""
        self._ending = True
        with contextlib.suppress(RuntimeError, AttributeError):  # the store is gone, or not there
            self._watched.compare_set(END, "", json.dumps([status, reason]))
        time.sleep(2 * LOOK if status else 0)

    def _fail(self, status: int, reason: str) -> NoReturn:
        """End the job on all ranks."""
        self.end(status, reason)
        self._exit(status, reason)

    def _lose_store(self, what: str) -> None:
        if not self._closing.is_set():
            self._exit(1, f"the launcher of rank 0 {what}")

    def _exit(self, status: int, reason: str) -> NoReturn:
        """Leave at once, whatever the main thread waits for."""
        self._exiting.acquire()  # for good
        if sys.stdin is not None and sys.stdin.isatty():  # a prompt has it in raw mode
            subprocess.run(["stty", "sane"], check=False)
        if reason:
            popdist.say_once("".join(filter(str.isprintable, reason)))
            time.sleep(PATIENCE)
        os._exit(status)

    def leave(self) -> None:
        """At exit, or where a process ends without what is called then: be watched no more."""
        self._closing.set()
        # A thread that comes back from torch while the interpreter ends would abort the process.
        self._thread.join(self._silence)

    def _close(self) -> None:
        """At exit: who waits for this rank in a collective learns that it has gone."""
        self._turn.acquire(timeout=PATIENCE)  # for good: no thread is to be in torch from now on
        self._groups.clear()
        if dist.is_initialized():
            dist.destroy_process_group()


_job: Job | None = None


def join(device: str = "cpu") -> Job:
    """The job of this process, which all must join. On "cuda", NCCL connects the devices.

    Raises:
        ValueError: there is no launcher, or a time limit is no number.
    """
    global _job
    if _job is None:
        _job = Job(device)
    return _job
