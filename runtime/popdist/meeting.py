"""How the processes of a job find each other, at a store that one of them or the launcher holds.

The waiting is done by a thread, so that this process can be interrupted, or told to end, meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch.distributed as dist

import popdist
from popdist.member import Member, environment, parent, state
from popdist.watch import first_beat

LIMIT, LAUNCHED = 300.0, 120.0
"""Seconds that processes wait for each other where people start them, and where a launcher does,
on all machines at once: importing may still take long on one of them."""

ENDED = "ended"

LOOK = 0.1
"""Seconds between two looks at who has come."""


class JobError(RuntimeError):
    """The processes could not meet, or one of them was lost."""


class Meeting:
    """The meeting of this process with the others, at `MASTER_ADDR` and `MASTER_PORT`.

    Attributes:
        store: where they meet.
        start: prefixes the keys of this start of the processes.
        launched: whether the launcher holds the store; otherwise rank 0 does.
        members: those that have come, by rank.
    """

    def __init__(self, silence: float):
        """
        Args:
            silence: seconds that a process of this machine may be stopped.
        """
        self.index, self.count = popdist.getInstanceIndex(), popdist.getNumInstances()
        self.launched = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._limit = LAUNCHED if self.launched else LIMIT
        self.start = f"popdist/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self.store: Any = None
        self._told: Any = None  # where those that come say so
        self.members: dict[int, Member] = {}
        self._silence, self._problem, self._raised = silence, "", False
        self._answered = math.inf  # when the store did last; from when one is expected to

    def hold(self) -> None:
        """Wait until all have come.

        Raises:
            JobError: they do not.
        """
        thread = threading.Thread(target=self._wait, name="popdist-meeting", daemon=True)
        thread.start()
        while thread.is_alive() and not self._problem:
            thread.join(LOOK)  # here the handlers of signals can run
            if time.monotonic() - self._answered > self._silence:
                who = "the launcher" if self.launched else "rank 0"
                self._problem = self._not_met(f"{who} does not answer")
        if self._problem:
            self._raised = True
            raise JobError(self._problem)

    @property
    def watched(self) -> Any:
        """Where those that have met watch each other."""
        return dist.PrefixStore(f"{self.start}/watch", self.store)

    def give_up(self) -> None:
        """Have the others wait no longer: this process ends."""
        if self._told is not None:
            with contextlib.suppress(RuntimeError):
                self._told.set(ENDED, f"rank {self.index} has ended")

    def missed(self) -> str:
        """Who has not come yet, and why; empty where that is not known, or was raised."""
        if self._problem:
            return "" if self._raised else self._problem
        missing = [f"rank {rank}" for rank in self._missing()]
        if not missing or not self.members:
            return ""
        return f"rank {self.index} ended while it waited for {', '.join(missing)} to start"

    @property
    def speaks(self) -> bool:
        """Whether this process says why they have not met: the first one that has come."""
        if not self.members:
            return os.environ.get("LOCAL_RANK", "0") == "0"
        return self.index == min(self.members)

    def _wait(self) -> None:
        try:
            if self.launched:  # its store is there before any rank is
                self._answered = time.monotonic()
            self.store = self._connected()
            self._introduce()
            self._answered = math.inf
        except (KeyError, RuntimeError, ValueError) as error:
            self._problem = self._not_met(str(error).splitlines()[0])

    def _connected(self) -> Any:
        return dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            self.count,
            is_master=self.index == 0 and not self.launched,
            timeout=timedelta(seconds=self._limit),
            wait_for_workers=False,
            multi_tenant=True,
        )

    def _introduce(self) -> None:
        """Tell the others what this process is, and read what they are."""
        told = self._told = dist.PrefixStore(f"{self.start}/members", self.store)
        first_beat(self.watched, self.index)  # before the others know that there is one
        told.set(f"{self.index}", json.dumps(asdict(Member.this())))
        until = time.monotonic() + self._limit
        stopped_since: dict[int, float] = {}
        while len(self.members) < self.count and not self._problem:
            for rank in self._missing():
                if told.check([f"{rank}"]):
                    self.members[rank] = Member(**json.loads(told.get(f"{rank}")))
            now = self._answered = time.monotonic()
            if told.check([ENDED]):
                self._problem = self._not_met(told.get(ENDED).decode())
            elif now > until:
                ranks = ", ".join(f"rank {rank}" for rank in self._missing())
                self._problem = self._not_met(f"{ranks} did not come within {self._limit:.0f} s")
            self._judge_stopped(now, stopped_since)
            time.sleep(LOOK)

    def _judge_stopped(self, now: float, since: dict[int, float]) -> None:
        """Find out whether one that has not come is here, and stopped for too long."""
        for rank, pid in siblings():
            if rank in self.members or state(pid) != "T":
                since.pop(rank, None)
            elif now - since.setdefault(rank, now) > self._silence:
                self._problem = (
                    f"rank {rank} (process {pid}) is stopped, and has not come for "
                    f"{now - since[rank]:.0f} s"
                )
                os.kill(pid, signal.SIGKILL)  # it would not end otherwise

    def _missing(self) -> list[int]:
        return [rank for rank in range(self.count) if rank not in self.members]

    def _not_met(self, reason: str) -> str:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        return (
            f"rank {self.index}: the {self.count} processes did not meet at {where} "
            f"(MASTER_ADDR:MASTER_PORT): {reason}"
        )


def siblings() -> Iterator[tuple[int, int]]:
    """Rank and number of the other processes of the launcher that started this one."""
    for number in filter(str.isdigit, os.listdir("/proc")):
        pid = int(number)
        if pid != os.getpid() and parent(pid) == os.getppid():
            rank = environment(pid).get("RANK", "")
            if rank.isdigit():
                yield int(rank), pid
