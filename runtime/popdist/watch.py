"""The ranks of a job meet at a store, watch each other there, and end together.

Each rank sets a heartbeat from a thread of its own, which also runs while the program computes or
waits for a person. The first rank that misses another, or that ends the job, writes how it ended
under one key; the others exit when they read it, and one of them says why.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from popdist.said import say, say_once

WAIT, SILENCE = "POPDIST_WAIT", "POPDIST_SILENCE"
"""Environment variables: seconds that ranks wait for each other to start, and seconds without a
heartbeat after which one is lost."""

LOOK, NOTICE, PATIENCE = 0.25, 5.0, 2.0
"""Seconds between two looks at the store; until it is said who is waited for; and for which a rank
that knows how the job ended stays, for the others to read and say it."""

CAUSES = "it has died or is stopped, or its machine or the network is down"
END, LEFT = "end", "left"


class JobError(RuntimeError):
    """The ranks could not meet."""


class Watch:
    """What this rank knows of the others; made once all have come.

    Attributes:
        store: where they met.
        silence: seconds without a heartbeat after which a rank is lost.

    Raises:
        JobError: the others do not come.
    """

    def __init__(self, index: int, count: int):
        self.index, self.count = index, count
        self.silence, self._wait = seconds(SILENCE, 20.0), seconds(WAIT, 120.0)
        self.store: Any = None
        self._launched = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._holds_store = index == 0 and not self._launched
        # Without a store one rank of each host speaks; rank 0 may be what is lost with it.
        self._speaks = index == int(not self._launched) or os.environ.get("LOCAL_RANK") == "0"
        self._name = f"rank {index} (process {os.getpid()} on {socket.gethostname()})"
        self._beats: dict[int, tuple[str, float]] = {}  # the last of each rank, and when
        self._looked, self._parent = float("inf"), os.getppid()
        self._fault, self._ending, self._exiting = "", False, threading.Lock()
        self._met, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        atexit.register(self.leave)
        self._meet()

    def _meet(self) -> None:
        """Wait until all have come; signals are handled meanwhile."""
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        began, notice = time.monotonic(), min(NOTICE, self._wait / 4)
        while not self._met.wait(LOOK):
            waited, come = time.monotonic() - began, sorted(self._beats)
            absent = [r for r in range(self.count) if r not in come] if come else [0]
            missing = f"rank{'s' * (len(absent) > 1)} {', '.join(map(str, absent))}"
            if waited > self._wait and not self._fault:
                self._fault = f"{missing} did not come within {self._wait:g} s: start the same "
                self._fault += f"command for each rank, or set {WAIT} to more seconds"
            if self._fault:
                self.end(2)
                if self.store is None and not self._speaks:
                    os._exit(2)
                raise JobError(f"the {self.count} ranks did not meet at {where}: {self._fault}")
            if waited > notice and (self.index == come[0] if come else self._speaks):
                limit, notice = f"for {self._wait:g} s at most ({WAIT})", float("inf")
                say(f"rank {self.index} waits for {missing} of {self.count} at {where}, {limit}")

    def end(self, status: int, reason: str = "", speaker: int = 0) -> None:
        """End the job on all ranks; does not return where another one did so before.

        Args:
            status: with which the others exit.
            reason: one line, which the rank `speaker` prints; this process exits, too.
        """
        self._ending = True
        with contextlib.suppress(RuntimeError, AttributeError):  # the store is gone, or not there
            own = json.dumps([self.index, status, reason, speaker])
            self._obey(self._own.compare_set(END, "", own))
        if reason:
            self._exit(status, reason, speaker)

    def look(self) -> None:
        """End this process if the job has ended."""
        if self._own.check([END]):
            self._obey(self._own.get(END))

    def leave(self) -> None:
        """At exit: be watched no more. The rank that holds the store leaves last.

        To be called where a process ends without the functions that run at exit.
        """
        until = time.monotonic() + (PATIENCE if self._ending else float("inf"))
        while self._holds_store and time.monotonic() < until:
            if all(rank == self.index or b == LEFT for rank, (b, _) in [*self._beats.items()]):
                break
            time.sleep(LOOK / 5)
        self._closing.set()
        # A thread that comes back from torch while the interpreter ends would abort the process.
        self._thread.join(self.silence if self._met.is_set() else PATIENCE)

    # --- the thread ---

    def _run(self) -> None:
        """Meet the others at the store, and look at their heartbeats there until the end."""
        silent = f"has not answered for {self.silence:g} s: {CAUSES}"
        try:
            self._connect()
            while not self._closing.wait(LOOK):
                alarm = threading.Timer(self.silence, self._lose_store, [silent])
                alarm.start()  # a store that is cut off keeps this thread waiting
                self._own.set(f"beat/{self.index}", f"{self._name} {time.monotonic()}")
                self.look()
                self._judge(time.monotonic())
                alarm.cancel()
            self._own.set(f"beat/{self.index}", LEFT)
        except dist.DistError as error:
            self._lose_store("has ended, and with it the store" if self.store else f"{error}")
        except Exception as error:  # whatever a stranger's text leads to
            self._lose_store(f"holds a store to which another program writes: {error!r:.80}")

    def _connect(self) -> None:
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        while not self._holds_store:  # a store that tries again itself prints its stack
            with contextlib.suppress(OSError):
                socket.create_connection(where, timeout=1).close()
                break
            if self._closing.wait(LOOK):
                sys.exit()  # this thread
        limit = timedelta(seconds=self._wait + PATIENCE)
        store = store_at(*where, self.count, self._holds_store, limit, wait_for_workers=False)
        start = f"popdist/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._own = dist.PrefixStore(f"{start}/watch", store.clone())
        self.store = dist.PrefixStore(start, store)

    def _judge(self, now: float) -> None:
        """Find who has come, and who is lost."""
        stopped = now - self._looked > self.silence / 2  # this one: the others may have been, too
        self._looked = now
        for rank in [r for r in range(self.count) if self._own.check([f"beat/{r}"])]:
            beat = self._own.get(f"beat/{rank}").decode(errors="replace")
            last, since = self._beats.get(rank, (None, now))
            if beat != last or stopped:
                self._beats[rank] = beat, now
            elif now - since > self.silence and beat != LEFT and not self._ending:
                name = beat.rpartition(" ")[0]
                reason = f"{name} has not answered for {now - since:.0f} s: {CAUSES}"
                self.end(1, reason, speaker=int(rank == 0))
        if self._launched and os.getppid() != self._parent and not self._ending:
            self.end(1, f"the launcher of {self._name} has ended")
        if len(self._beats) == self.count:
            self._met.set()

    # --- endings ---

    def _lose_store(self, what: str) -> None:
        holder = "the launcher of rank 0" if self._launched else "rank 0"
        told = f"{holder} {what}".partition("\n")[0]
        if self._met.is_set() and not self._closing.is_set():
            self._exit(1, told, self.index if self._speaks else -1)
        self._fault, self.store = self._fault or told, None

    def _obey(self, ending: bytes) -> None:
        """End this process as the job ends, unless it is what ended the job."""
        by, status, reason, speaker = json.loads(ending)
        if by != self.index:
            self._own.set(f"beat/{self.index}", LEFT)
            self._exit(int(status), str(reason), speaker)

    def _exit(self, status: int, reason: str, speaker: int) -> None:
        """Leave at once, whatever the main thread waits for."""
        self._exiting.acquire()  # for good
        if sys.stdin is not None and sys.stdin.isatty():  # a prompt has it in raw mode
            subprocess.run(["stty", "sane"], check=False)
        if reason:
            if speaker == self.index:
                say_once("".join(filter(str.isprintable, reason)))
            time.sleep(PATIENCE)
        os._exit(status)


def store_at(
    host: str, port: int, count: int, is_master: bool, timeout: timedelta, **options: Any
) -> Any:
    """A `TCPStore`, with its parameters, whose server listens on `host` alone: PyTorch's own
    listens on every interface. Where `host` is no address of this machine, it listens on all.

    Raises:
        RuntimeError: no store answers, or the port is taken.
    """
    if is_master:
        with contextlib.suppress(OSError):  # the store itself says that a port is taken
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = socket.create_server(address[:2], family=family, backlog=1024)
            # The store takes the descriptor and closes it; only this kind of server can.
            options |= {"master_listen_fd": listener.detach(), "use_libuv": False}
    return dist.TCPStore(host, port, count, is_master, timeout, **{"multi_tenant": True, **options})


def seconds(variable: str, default: float) -> float:
    """What an environment variable sets, or a default.

    Raises:
        ValueError: where it is no number from 2 on.
    """
    given = os.environ.get(variable, f"{default}")
    with contextlib.suppress(ValueError):
        if 2 <= float(given) < float("inf"):
            return float(given)
    raise ValueError(f"{variable} must be seconds, 2 or more, not {given!r}")
