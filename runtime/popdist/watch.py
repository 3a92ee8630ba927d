"""Every process of a job watches the others, so that none waits for one that will not answer.

Each writes a beat to the store where they met, once a second, from a thread of its own: it also
runs while the program computes, waits in a collective, or waits for a person. Whose beat stays out
is lost, and so is who died on the same machine; then all the others end, and one of them says why.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, NoReturn

from popdist.member import Member
from popdist.once import PATIENCE, claim
from popdist.progress import Progress
from popdist.seconds import seconds_of
from popdist.terminal import TerminalSettings, say

SILENCE = "POPDIST_SILENCE"
"""Environment variable: seconds without a beat after which a process counts as lost."""

DEFAULT_SILENCE = 20.0
BEAT, LOOK = 1.0, 0.25
"""Seconds between two beats, and between two looks at whether the job has ended."""

SIGNALLED = 128
"""Exit statuses above tell of a signal."""

END = "end"

Collective = tuple[str, tuple[int, ...]]
"""The name of a collective, and the ranks that take part."""


@dataclass(frozen=True)
class Ending:
    """How the job ended.

    Attributes:
        rank: who ended it, or was lost; -1 where that is no single one.
        status: with which the others exit.
        reason: what one of them says; nothing where empty.
        lost: whether that process was lost.
    """

    rank: int
    status: int
    reason: str
    lost: bool = False

    @property
    def speaker(self) -> int:
        """The rank that says the reason: the first one that is not concerned."""
        return 1 if self.rank == 0 else 0


class Watch:
    """Watches the other processes of a job, and lets itself be watched.

    Args:
        store: a connection of its own to the store where they met.
        index: of this process.
        members: all of them, by rank.
        launcher_holds_store: otherwise rank 0 does.
    """

    def __init__(
        self, store: Any, index: int, members: Mapping[int, Member], launcher_holds_store: bool
    ):
        self._store, self.index, self.count = store, index, len(members)
        self._members = members
        self._launcher_holds_store = launcher_holds_store
        self._parent = os.getppid()
        self._silence = silence()
        self._collective: Collective | None = None
        self._progress: Progress | None = None  # from the first collective on
        self._beats: dict[int, tuple[bytes, float]] = {}  # the last one of each rank, and when
        self._waits: dict[
            int, tuple[list | None, float]
        ] = {}  # each rank's collective, and since when
        self._left: set[int] = set()
        self._answered = time.monotonic()  # when the store did last
        self._status: int | None = None  # with which this process ends the job
        self._store_lost = False
        self._closing = threading.Event()
        self._exiting = threading.Lock()
        self._terminal = TerminalSettings()
        self._threads = [
            threading.Thread(target=run, name=f"popdist-{run.__name__}", daemon=True)
            for run in (self._beat, self._watch_store)
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.leave)
        self._print_uncaught, sys.excepthook = sys.excepthook, self._uncaught

    @property
    def collective(self) -> Collective | None:
        """The name and the ranks of the collective that this process waits in, if it does."""
        return self._collective

    @collective.setter
    def collective(self, collective: Collective | None) -> None:
        self._collective = collective
        if self._progress is None:  # what is done before may take long, in other processes too
            self._progress = Progress()

    def processes_here(self) -> int:
        """How many processes of the job share this machine, this one among them."""
        return sum(member.here for member in self._members.values())

    def end(self, status: int, reason: str = "") -> None:
        """End the job on all processes; does not return where another one did so before.

        Args:
            status: with which the others exit.
            reason: one line that another process prints; nothing where empty.
        """
        self.look()
        self._status = status
        try:
            ending = self._propose(Ending(self.index, status, reason))
        except RuntimeError:  # without a store the others end by themselves
            return
        self._obey(ending)
        if reason:
            time.sleep(PATIENCE)

    def leave(self) -> None:
        """At exit: be watched no more, and keep the store until the others have gone.

        To be called where a process ends without the functions that run at exit.
        """
        if self._closing.is_set():
            return
        with contextlib.suppress(RuntimeError):
            self._store.set(f"left/{self.index}", "1")
            if self._holds_store:
                ending = self._status is not None
                self._see_off(time.monotonic() + 2 * PATIENCE if ending else float("inf"))
        self._closing.set()
        for thread in self._threads:
            thread.join(2 * LOOK)

    def wait_for_end(self) -> None:
        """Wait for this process to be ended, for as long as it may take to find out why."""
        time.sleep(self._silence + 2 * BEAT + PATIENCE)

    def look(self) -> None:
        """End this process, and say why, if another one on this machine has died."""
        with contextlib.suppress(RuntimeError):
            for rank in self._watched():
                if self._members[rank].died and not self._store.check([f"left/{rank}"]):
                    self._lose(rank, "has died")

    # --- the threads ---

    def _beat(self) -> None:
        """Beat, look at the others' beats, and end when the job does."""
        number, due = 0, 0.0
        try:
            while not self._closing.wait(LOOK):
                if self._store.check([END]):
                    self._obey(Ending(**json.loads(self._store.get(END))))
                now = time.monotonic()
                if now >= due:
                    number, due = number + 1, now + BEAT
                    idle = self._progress.idle() if self._progress is not None else 0.0
                    beat = json.dumps([number, self.collective, idle])
                    self._store.set(f"beat/{self.index}", beat)
                    self._judge(now)
                    self._look_at_launcher()
                self._answered = time.monotonic()
        except RuntimeError:
            if self._status is None:  # otherwise this process ends already
                self._lose_store("has ended, and with it the store where the ranks met")
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            self._lose_store("holds a store in which another program writes")

    def _look_at_launcher(self) -> None:
        """End all if the launcher that started this process has died: it would end nobody."""
        if self._launcher_holds_store and os.getppid() != self._parent and self._status is None:
            reason = f"the launcher of rank {self.index} ({self._members[self.index]}) has ended"
            self._obey(self._propose(Ending(-1, 1, reason, lost=True)))

    def _judge(self, now: float) -> None:
        """Find the processes that are lost."""
        if self._status is None:
            self.look()  # first: of who has died more can be said than that it is silent
        was_stopped = now - self._answered > self._silence / 2  # this process itself
        self._left.update(r for r in self._watched() if self._store.check([f"left/{r}"]))
        watched = self._watched()
        beats = self._store.multi_get([f"beat/{rank}" for rank in watched])
        for rank, beat in zip(watched, beats, strict=True):
            before, since = self._beats.get(rank, (b"", now))
            if was_stopped or beat != before:
                self._beats[rank] = beat, now
            elif now - since > self._silence:
                self._lose(rank, f"has not answered for {now - since:.0f} s")
        beat_of = {rank: json.loads(beat) for rank, beat in zip(watched, beats, strict=True)}
        self._judge_waits(now, {rank: beat[1] for rank, beat in beat_of.items()})
        self._judge_idle(now, beat_of)

    def _judge_idle(self, now: float, beats: dict[int, list]) -> None:
        """Find a process that this one waits for in a collective, and that does nothing."""
        waited_in, since = self._waits[self.index]
        if not waited_in or now - since <= self._silence:
            return
        name, ranks = waited_in
        for rank in ranks:
            _, collective, idle = beats.get(rank, (0, None, 0.0))
            if collective is None and idle > self._silence:
                self._lose(rank, f"does nothing, and others wait for it in {name}")

    def _judge_waits(self, now: float, told: dict[int, list | None]) -> None:
        """Find whether all processes wait, one for another that is in a different collective.

        Args:
            told: the collective that each of the others waits in.
        """
        told[self.index] = self.collective and [self.collective[0], list(self.collective[1])]
        for rank, collective in told.items():
            if not collective or self._waits.get(rank, ([], now))[0] != collective:
                self._waits[rank] = collective, now
        if len(told) < self.count or any(now - t <= self._silence for _, t in self._waits.values()):
            return
        places = {rank: collective for rank, collective in told.items() if collective}
        if any(told[other] != place for place in places.values() for other in place[1]):
            where = ", ".join(f"rank {rank} in {places[rank][0]}" for rank in sorted(places))
            reason = f"the ranks wait for each other in different collectives: {where}"
            self._obey(self._propose(Ending(-1, 1, reason, lost=True)))

    def _watch_store(self) -> None:
        """See whether the store answers: the other thread waits for it."""
        before = time.monotonic()
        while not self._closing.wait(LOOK):
            now = time.monotonic()
            if now - before > self._silence / 2:
                self._answered = now  # this process was stopped itself
            if now - self._answered > self._silence:
                self._lose_store(f"has not answered for {now - self._answered:.0f} s")
            before = now

    @property
    def _holds_store(self) -> bool:
        return self.index == 0 and not self._launcher_holds_store

    def _watched(self) -> list[int]:
        return [r for r in range(self.count) if r != self.index and r not in self._left]

    # --- endings ---

    def _propose(self, ending: Ending) -> Ending:
        """The job's ending: the first that was proposed."""
        return Ending(**json.loads(self._store.compare_set(END, "", json.dumps(asdict(ending)))))

    def _lose(self, rank: int, what: str) -> None:
        member = self._members[rank]
        reason = f"rank {rank} ({member}) {what}{member.condition}"
        self._obey(self._propose(Ending(rank, 1, reason, lost=True)))

    def _lose_store(self, what: str) -> None:
        self._store_lost = True
        first = self._members[0]
        for rank in self._watched():
            if self._members[rank].died:
                reason = f"rank {rank} ({self._members[rank]}) has died"
                self._exit(Ending(rank, 1, reason, lost=True))
        if self._launcher_holds_store:
            self._exit(Ending(-1, 1, f"the launcher of rank 0 ({first}) {what}", lost=True))
        elif self.index and 0 not in self._left and self._status is None:
            self._exit(Ending(0, 1, f"rank 0 ({first}) {what}{first.condition}", lost=True))

    def _obey(self, ending: Ending) -> None:
        """End this process as the job ends, unless it is ending by itself."""
        if ending.rank != self.index or ending.lost:
            self._exit(ending)

    def _exit(self, ending: Ending) -> NoReturn:
        """Leave at once, whatever the main thread waits for."""
        self._exiting.acquire()  # for good
        if ending.lost and ending.rank in self._members and ending.rank != self.index:
            self._members[ending.rank].kill()  # it may be stopped, and would never end
        self._terminal.restore()
        alike = self._status == ending.status > SIGNALLED  # the same signal came to both
        if ending.lost and ending.reason and not alike:
            # Whoever was to say it may have been ended meanwhile, by a launcher or a person.
            if claim(patient=not self._speaks(ending)):
                say(f"error: {ending.reason}")
        elif ending.reason and self._speaks(ending) and not alike:
            say(f"error: {ending.reason}")
        if not self._store_lost:  # or this might wait for it
            with contextlib.suppress(RuntimeError):
                self._store.set(f"left/{self.index}", "1")
                if self._holds_store:
                    self._see_off(time.monotonic() + PATIENCE)
        if ending.reason and self._launcher_holds_store and not self._speaks(ending):
            time.sleep(PATIENCE)
        os._exit(ending.status)

    def _speaks(self, ending: Ending) -> bool:
        """Whether this process says why: without the store the first one of each machine does."""
        if not self._store_lost:
            return self.index == ending.speaker
        left = {*self._left, ending.rank}
        here = [r for r, m in self._members.items() if m.here and not m.died and r not in left]
        return self.index == min(here, default=self.index)

    def _uncaught(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """What is printed of an exception that ends this process; it ends the job, too."""
        self._print_uncaught(kind, error, trace)
        first = str(error).partition("\n")[0]
        self.end(1, f"rank {self.index} ended by {kind.__name__}: {first}" if self.index else "")

    def _see_off(self, until: float) -> None:
        """Wait for the others to leave, who need the store for it."""
        while self._remaining() and time.monotonic() < until:
            time.sleep(LOOK / 5)

    def _remaining(self) -> list[int]:
        """The others that neither left nor died."""
        return [
            rank
            for rank in self._watched()
            if not self._members[rank].died and not self._store.check([f"left/{rank}"])
        ]


def first_beat(store: Any, index: int) -> None:
    """The beat of a process whose watch has not begun."""
    store.set(f"beat/{index}", json.dumps([0, None, 0.0]))


def silence() -> float:
    """Seconds without an answer that are too many.

    Raises:
        ValueError: where the environment sets them to no number from 2 on.
    """
    return seconds_of(SILENCE, DEFAULT_SILENCE)
