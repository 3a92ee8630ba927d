"""How many threads compute where other programs want the processor, too.

Threads of one run wait for each other after every instruction. One that the operating system takes
off its core, for the milliseconds that another program gets, holds up all of them: two threads on
one and a half cores are slower than one. The system counts how long threads were ready to run and
did not (`/proc/*/schedstat`). While that is long, fewer compute; when cores are idle again
(`/proc/stat`), more do. Results do not change: no kernel's depend on the number of threads.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

FIXED_THREADS = "POPXL_FIXED_THREADS"
"""Environment variable: where it is 1, other programs do not change the number of threads."""

WINDOW = 0.1
"""Seconds that are judged together."""

LASTS = 3
"""Windows, one after another, with too many threads after which fewer compute: what wants a core
for a moment costs less than a thread that is missing until more are tried."""

TOO_MANY = 0.3
"""Threads without a core, on average, above which fewer compute. Beside a process that never
sleeps two threads on two cores are 0.67 too many."""

ROOM = 0.7
"""Idle cores that another thread needs."""

PAUSE, LONGEST_PAUSE = 0.25, 2.0
"""Seconds until more threads are tried: doubled when these turn out to be too many soon after."""

TELL_AFTER = 5.0
"""Seconds with fewer threads after which a line says so."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Usage:
    """Seconds since some moment.

    Attributes:
        computed: that the threads of this process computed, all together.
        waited: that they were ready to and had no core.
        idle: that the cores they may use had nothing to do, all together.
    """

    computed: float
    waited: float
    idle: float


class Crowd:
    """The number of threads for what is computed next.

    Args:
        usage: what was used of the processor so far; it raises OSError or ValueError where the
            system does not tell, and the number of threads stays.
    """

    told = False  # of this process: a line for every session would repeat itself

    def __init__(
        self, usage: Callable[[], Usage] | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self._usage, self._clock = usage or usage_of_process, clock
        self._most = self._threads = 0
        self._before, self._began = Usage(0, 0, 0), 0.0
        self._more_from = 0.0  # when more threads may be tried
        self._pause, self._full_since, self._fewer_since = PAUSE, -math.inf, 0.0
        self._short = 0  # windows with too many threads so far
        self._follows = os.environ.get(FIXED_THREADS) != "1"

    def threads(self, most: int) -> int:
        """Of `most` threads, those that are to compute now."""
        if most == 1 or not self._follows:
            return most
        now = self._clock()
        if most != self._most:
            self._most = self._threads = most
            self._look(now)
        elif now >= self._began + WINDOW:
            self._judge(now)
        return self._threads

    def _judge(self, now: float) -> None:
        before, passed = self._before, now - self._began
        self._look(now)
        if not self._follows:
            return
        computed = self._before.computed - before.computed
        waited = max(self._before.waited - before.waited, 0.0)  # less where threads have ended
        surplus = self._threads * waited / max(waited + computed, 1e-9)
        room = (self._before.idle - before.idle + computed) / passed - self._threads
        self._short = self._short + 1 if self._threads > 1 and surplus > TOO_MANY else 0
        if self._short >= (1 if self._soon(now) else LASTS):
            self._take(max(1, round(surplus)), now)
        elif self._threads < self._most and not self._short:
            self._tell(now)
            if room > ROOM and now >= self._more_from:
                self._give(int(room + 1 - ROOM), now)

    def _soon(self, now: float) -> bool:
        """Whether it was too many threads a while ago, too."""
        return self._threads < self._most or now - self._full_since < 4 * self._pause

    def _take(self, threads: int, now: float) -> None:
        if self._threads == self._most:
            self._pause = min(2 * self._pause, LONGEST_PAUSE) if self._soon(now) else PAUSE
            self._fewer_since = now
        self._threads, self._short = max(1, self._threads - threads), 0
        self._more_from = now + self._pause

    def _give(self, threads: int, now: float) -> None:
        self._threads = min(self._most, self._threads + threads)
        if self._threads == self._most:
            self._full_since = now

    def _look(self, now: float) -> None:
        try:
            self._before = self._usage()
        except (OSError, ValueError, IndexError):
            self._follows, self._threads = False, self._most
        self._began = now

    def _tell(self, now: float) -> None:
        if Crowd.told or now - self._fewer_since < TELL_AFTER:
            return
        Crowd.told = True
        _log.warning(
            "other programs use the processor: %d of %d threads compute (slower)",
            self._threads,
            self._most,
        )


def usage_of_process() -> Usage:
    """What this process used of the processor since it began; idle cores since the machine did.

    Raises:
        OSError: where the system keeps no such counts.
        ValueError, IndexError: where they are not as Linux writes them.
    """
    waited = 0
    for thread in os.listdir("/proc/self/task"):
        try:
            waited += int(_read(f"/proc/self/task/{thread}/schedstat").split()[1])
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    return Usage(time.process_time(), waited * 1e-9, _idle())


def _idle() -> float:
    ticks, ours = 0, {f"cpu{core}" for core in os.sched_getaffinity(0)}
    for line in _read("/proc/stat").splitlines():
        name, *counts = line.split()
        if name in ours:
            ticks += int(counts[3]) + int(counts[4])  # idle, and waiting for a disk
        elif not name.startswith("cpu"):
            break
    return ticks / os.sysconf("SC_CLK_TCK")


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read(1 << 16)
