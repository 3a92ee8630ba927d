"""The ranks of a job meet at the store of the launcher, watch each other there, and end together.

Each rank sets a heartbeat from a thread of its own, which also runs while the program computes or
waits for a person. The first rank that misses another, or that ends the job, writes how it ended
under one key; the others exit when they read it, and one process of each launcher says why.
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
from typing import Any, NoReturn

import torch.distributed as dist

from popdist import number, say_once

WAIT, SILENCE = "POPDIST_WAIT", "POPDIST_SILENCE"
"""Environment variables: seconds that ranks wait for each other to start, and seconds without a
heartbeat after which one is lost."""

LOOK, PATIENCE = 0.25, 2.0
"""Seconds between two looks at the store, and for which a rank that knows why the job ended stays,
as its launcher may hold the store where others read it."""

CAUSES = "it has died or is stopped, or its machine or the network is down"
END, LEFT = "end", "left"


class Watch:
    """What this rank knows of the others; made once all have come, or the process ends.

    Attributes:
        store: where they met.
        silence: seconds without a heartbeat after which a rank is lost.

    Raises:
        ValueError: no launcher holds a store, or a time limit is no number.
    """

    def __init__(self, index: int, count: int):
        self.index, self.count = index, count
        self.silence, self._wait = number(SILENCE, 2, 20), number(WAIT, 2, 120)
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            raise ValueError("several ranks need a launcher: start them by `python -m popdist.run`")
        self.store: Any = None
        self._name = f"rank {index} (process {os.getpid()} on {socket.gethostname()})"
        self._beats: dict[int, tuple[str, float]] = {}  # the last of each rank, and when
        self._looked, self._parent = float("inf"), os.getppid()
        self._ending, self._exiting = False, threading.Lock()
        self._met, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        atexit.register(self.leave)
        self._meet()

    def _meet(self) -> None:
        """Wait until all have come; signals are handled meanwhile."""
        until = time.monotonic() + self._wait
        while not self._met.wait(LOOK):
            if time.monotonic() > until:
                absent = ", ".join(f"{r}" for r in range(self.count) if r not in self._beats)
                limit = f"{self._wait} s: set {WAIT} to more if they start later"
                self.fail(2, f"of {self.count} ranks, {absent} did not come within {limit}")

    def end(self, status: int, reason: str = "") -> None:
        """End the job on all ranks but this one, with a status and one line that says why."""
        self._ending = True
        with contextlib.suppress(RuntimeError, AttributeError):  # the store is gone, or not there
            self._own.compare_set(END, "", json.dumps([self.index, status, reason]))
        time.sleep(2 * LOOK if status else 0)

    def fail(self, status: int, reason: str) -> NoReturn:
        """End the job on all ranks."""
        self.end(status, reason)
        self._exit(status, reason)

    def leave(self) -> None:
        """At exit, or where a process ends without what is called then: be watched no more."""
        self._closing.set()
        # A thread that comes back from torch while the interpreter ends would abort the process.
        self._thread.join(self.silence)

    # --- the thread ---

    def _run(self) -> None:
        """Meet the others at the store, and look at their heartbeats there until the end."""
        silent = f"has not answered for {self.silence} s: {CAUSES}"
        try:
            while not self._closing.wait(LOOK):
                alarm = threading.Timer(self.silence, self._lose_store, [silent])
                alarm.start()  # a store that is cut off keeps this thread waiting
                if self.store is None:
                    self._connect()
                self._own.set(f"beat/{self.index}", f"{self._name} {time.monotonic()}")
                if self._own.check([END]):
                    self._obey(self._own.get(END))
                self._judge(time.monotonic())
                alarm.cancel()
            self._own.set(f"beat/{self.index}", LEFT)
        except (dist.DistError, OSError):
            self._lose_store("has ended, and with it the store")
        except Exception as error:  # whatever a stranger's text leads to
            self._lose_store(f"holds a store to which another program writes: {error!r:.80}")

    def _connect(self) -> None:
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        socket.create_connection(where).close()  # a store that finds nobody prints its stack
        limit = timedelta(seconds=self._wait + self.silence)
        store: Any = dist.TCPStore(*where, None, False, limit, wait_for_workers=False)
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
                self.fail(1, f"{name} has not answered for {now - since:.0f} s: {CAUSES}")
        if os.getppid() != self._parent and not self._ending:
            self.fail(1, f"the launcher of {self._name} has ended")
        if len(self._beats) == self.count:
            self._met.set()

    # --- endings ---

    def _lose_store(self, what: str) -> None:
        if not self._closing.is_set():
            self._exit(1, f"the launcher of rank 0 {what}")

    def _obey(self, ending: bytes) -> None:
        """End this process as the job ends, unless it is what ended the job."""
        by, status, reason = json.loads(ending)
        if by != self.index:
            self._own.set(f"beat/{self.index}", LEFT)
            self._exit(int(status), str(reason))

    def _exit(self, status: int, reason: str) -> NoReturn:
        """Leave at once, whatever the main thread waits for."""
        self._exiting.acquire()  # for good
        if sys.stdin is not None and sys.stdin.isatty():  # a prompt has it in raw mode
            subprocess.run(["stty", "sane"], check=False)
        if reason:
            say_once("".join(filter(str.isprintable, reason)))
            time.sleep(PATIENCE)
        os._exit(status)
