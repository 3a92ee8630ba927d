"""How the processes of a job find each other, at a store that one of them or the launcher holds.

The waiting is done by a thread, so that this process can be interrupted, or told to end, meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch.distributed as dist

import popdist
from popdist.member import Member, state
from popdist.seconds import seconds_of
from popdist.siblings import ranks, siblings
from popdist.stores import store_at
from popdist.terminal import say
from popdist.watch import first_beat

WAIT = "POPDIST_WAIT"
"""Environment variable: seconds that processes wait for each other."""

LIMIT, LAUNCHED = 300.0, 120.0
"""Where it is not set: where people start them, and where a launcher does, on all machines at once:
importing may still take long on one of them."""

NOTICE = 5.0
"""Seconds after which it is said who is waited for; sooner where the wait is short."""

ENDED = "ended"

LOOK = 0.1
"""Seconds between two looks at who has come."""

FAREWELL = 1.0
"""Seconds for which the store is kept for others to see there that the wait is over."""


class JobError(RuntimeError):
    """The processes could not meet, or one of them was lost."""


class Meeting:
    """The meeting of this process with the others, at `MASTER_ADDR` and `MASTER_PORT`.

    Attributes:
        store: where they meet.
        start: prefixes the keys of this start of the processes.
        launched: whether the launcher holds the store; otherwise rank 0 does.
        members: those that have come, by rank.
        raised: whether they have not met, and `hold` says so.
    """

    def __init__(self, silence: float):
        """
        Args:
            silence: seconds that a process of this machine may be stopped.
        """
        self.index, self.count = popdist.getInstanceIndex(), popdist.getNumInstances()
        self.launched = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._limit = seconds_of(WAIT, LAUNCHED if self.launched else LIMIT)
        self.start = f"popdist/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self.store: Any = None
        self._told: Any = None  # where those that come say so
        self.members: dict[int, Member] = {}
        self.raised = False
        self._silence, self._problem = silence, ""
        self._stopped_since: dict[int, float] = {}  # of this machine, when it was seen first
        self._answered = math.inf  # when the store did last; from when one is expected to

    def hold(self) -> None:
        """Wait until all have come.

        Raises:
            JobError: they do not.
        """
        thread = threading.Thread(target=self._wait, name="popdist-meeting", daemon=True)
        thread.start()
        began = time.monotonic()
        notice = began + min(NOTICE, self._limit / 4)
        while thread.is_alive() and not self._problem:
            thread.join(LOOK)  # here the handlers of signals can run
            now = time.monotonic()
            if now - self._answered > self._silence:
                self._problem = self._not_met(f"{self._holder} does not answer")
            elif now - began > self._limit + self._silence and not self._problem:
                self._fail(f"no store answers there within {self._limit:g} s ({WAIT})")
            if now > notice and thread.is_alive() and not self._problem:
                notice = math.inf
                self._give_notice()
        if self._problem:
            self.raised = True
            siblings().kill_stopped(but=self.members)
            raise JobError(self._problem)

    def _give_notice(self) -> None:
        """Say whom this process waits for, if it is the first one of its machine."""
        missing = self._missing() if self.members else [0]  # who holds the store
        if missing and self.speaks:
            say(
                f"rank {self.index} waits for {ranks(missing)} of {self.count} to come to "
                f"{_address()}, for {self._limit:g} s at most ({WAIT})"
            )

    @property
    def watched(self) -> Any:
        """Where those that have met watch each other."""
        return dist.PrefixStore(f"{self.start}/watch", self.store)

    def give_up(self, reason: str = "") -> None:
        """Have the others wait no longer: this process ends."""
        if self._told is not None:
            with contextlib.suppress(RuntimeError):
                self._told.set(ENDED, reason or f"rank {self.index} has ended")

    def missed(self) -> str:
        """Who has not come yet, and why; empty where that is not known, or was raised."""
        if self._problem:
            return "" if self.raised else self._problem
        missing = self._missing()
        if not missing or not self.members:
            return ""
        ended = [rank for rank in siblings().missing() if rank in missing]
        if ended:
            return siblings().ended_early(ended)
        return f"rank {self.index} ended while it waited for {ranks(missing)} to start"

    @property
    def speaks(self) -> bool:
        """Whether this process says why they have not met: the first of its machine to come."""
        if not self.members:  # the store is not there yet, so all wait for who holds it
            return self.index == siblings().first(but=[] if self.launched else [0])
        here = [rank for rank, member in self.members.items() if member.here]
        return self.index == min([self.index, *here])

    def _wait(self) -> None:
        try:
            if self.launched:  # its store is there before any rank is
                self._answered = time.monotonic()
            if self.index and not self.launched:
                self._reach()
            if not self._problem:
                self.store = self._connected()
                self._introduce()
            self._answered = math.inf
        except RuntimeError as error:
            gone = f"{self._holder} has ended, and with it the store where the ranks meet"
            self._fail(gone if self._told is not None else _first_line(error))
        except Exception as error:  # whatever it is, this thread must not end without a word
            self._fail(_first_line(error))

    def _fail(self, reason: str) -> None:
        self._problem = self._problem or self._not_met(reason)

    def _reach(self) -> None:
        """Wait until somebody is there: the store's own way to wait tells pages.

        Raises:
            RuntimeError: nobody is in time.
        """
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        until = time.monotonic() + self._limit
        while not self._problem:
            try:
                socket.create_connection(where, timeout=LOOK * 10).close()
                return
            except OSError as error:
                if time.monotonic() > until:
                    raise RuntimeError(f"{self._late([0])} ({error})") from None
                self._judge_siblings(time.monotonic())
                time.sleep(LOOK)

    def _connected(self) -> Any:
        return store_at(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            self.count,
            is_master=self.index == 0 and not self.launched,
            timeout=timedelta(seconds=self._limit),
            wait_for_workers=False,
        )

    def _introduce(self) -> None:
        """Tell the others what this process is, and read what they are."""
        told = self._told = dist.PrefixStore(f"{self.start}/members", self.store)
        first_beat(self.watched, self.index)  # before the others know that there is one
        told.set(f"{self.index}", json.dumps(asdict(Member.this())))
        until = time.monotonic() + self._limit
        while len(self.members) < self.count and not self._problem:
            for rank in self._missing():
                if told.check([f"{rank}"]):
                    self.members[rank] = self._member(rank, told.get(f"{rank}"))
            now = self._answered = time.monotonic()
            if told.check([ENDED]):
                self._problem = self._not_met(told.get(ENDED).decode())
            elif now > until:
                self._end_wait()
            self._judge_siblings(now)
            time.sleep(LOOK)

    def _member(self, rank: int, text: bytes) -> Member:
        try:
            return Member.told(text)
        except ValueError:
            raise ValueError(
                f"what stands for rank {rank} is no member's: another program writes to this store"
            ) from None

    def _end_wait(self) -> None:
        """The others have not come in time."""
        self.give_up(self._late(self._missing()))
        if not self.launched and self.index == 0:
            time.sleep(FAREWELL)
        self._problem = self._not_met(self._told.get(ENDED).decode())

    def _judge_siblings(self, now: float) -> None:
        """Find out whether one of here that has not come has died, or is stopped for too long."""
        present = siblings().look()
        for rank in siblings().died():
            if rank not in self.members and not self._problem:
                self._problem = siblings().ended_early([rank])
                self.give_up(self._problem)
        for rank, pid in present.items():
            if rank in self.members or state(pid) != "T":
                self._stopped_since.pop(rank, None)
                continue
            seconds = now - self._stopped_since.setdefault(rank, now)
            if seconds > self._silence:
                self._problem = (
                    f"rank {rank} (process {pid}) is stopped, and has not come for {seconds:.0f} s"
                )

    @property
    def _holder(self) -> str:
        """Who holds the store."""
        return "the launcher of rank 0" if self.launched else "rank 0"

    def _missing(self) -> list[int]:
        return [rank for rank in range(self.count) if rank not in self.members]

    def _late(self, missing: Iterable[int]) -> str:
        return (
            f"{ranks(missing)} did not come within {self._limit:g} s: start the same command for "
            f"each rank, or set {WAIT} to more seconds"
        )

    def _not_met(self, reason: str) -> str:
        return (
            f"rank {self.index}: the {self.count} processes did not meet at {_address()} "
            f"(MASTER_ADDR:MASTER_PORT): {reason}"
        )


def _first_line(error: Exception) -> str:
    return f"{error}".partition("\n")[0] or type(error).__name__


def _address() -> str:
    """Where they meet."""
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
