"""Weights mapped from files that are larger than memory: read ahead, and given up again.

A program loads its remote slots in the same order every run. The pager learns that order; from then
on, each time a slot is loaded, the kernel is told to read the following ones while this one is
computed with, and to drop those that were used. As many as fit are never dropped: of what is read
in a circle, only what stays is not read again.

Nothing of this changes a value: pages are only brought in earlier, or dropped.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from popxl_torch.memory.system import (
    PAGEOUT,
    WILLNEED,
    Region,
    advise,
    available_memory,
    mapped_files,
    resident_share,
)

SMALL = 1 << 20
"""Bytes below which a slot is left to the kernel."""

IN_FLIGHT = 0.25
"""The share of the budget for slots that do not stay: those in use and those being read ahead."""

LAG = 16
"""Loads after which a slot is taken to be done with, where its store is not loaded from sooner."""

SPARSE = 0.5
"""A slot of which less is in memory after its use is one that rows are picked from."""

PATIENCE = 10.0
"""Seconds to wait at most for a slot to be asked for: after that the kernel reads it itself."""


@dataclass(frozen=True)
class _Load:
    """One load in the order of a run: which slot, and the store that it is an entry of."""

    pointer: int
    region: Region
    store: str


class Pager:
    """Reads ahead and drops the mapped slots of one session.

    A slot that is loaded is yet to be computed with. It is done with when another entry of the same
    store is loaded, as in the next round of a loop over layers.

    Args:
        budget: bytes that mapped slots may take; 80 % of the memory that is available where None.
    """

    def __init__(self, budget: int | None = None):
        self._budget = budget
        self._advisor = _Advisor()
        self.forget()

    @property
    def streams(self) -> bool:
        """Whether the mapped slots are known to be larger than the budget."""
        return self._state == "streaming"

    @property
    def fits(self) -> bool:
        """Whether loads need not be followed: slots fit the budget, or no large one was loaded."""
        return self._state == "fits" or (self._state == "learning" and not self._order)

    def forget(self) -> None:
        """Slots have got other memory: learn anew."""
        self._state = "learning"
        self._order: list[_Load] = []  # the loads of a run
        self._sparse: set[_Load] = set()
        self._staying: set[int] = set()  # pointers
        self._places: dict[int, list[int]] = {}  # by pointer
        self._at = self._asked = -1  # loaded last and asked for last, counted on over the runs
        self._in_use: list[tuple[int, _Load]] = []  # with the number of the load
        self._loads = 0
        self._in_flight: dict[int, int] = {}  # bytes by pointer, of those that do not stay

    def begins(self) -> None:
        """A run begins."""
        if self._state == "learning" and self._order:
            self._note_use(load for _, load in self._in_use)
            self._plan()

    def loads(self, tensor: torch.Tensor, store: str) -> torch.Tensor:
        """A slot of the store is about to be used; returns it."""
        if self._state == "streaming":
            self._follow(tensor.data_ptr())
        elif self._state == "learning" and tensor.nbytes >= SMALL:
            load = _Load(tensor.data_ptr(), Region.of(tensor), store)
            self._order.append(load)
            self._note_use(self._done_with(load))
        return tensor

    def _done_with(self, load: _Load) -> list[_Load]:
        """The slots in use that this load shows to be so no more."""
        self._loads += 1
        done = [
            (number, other)
            for number, other in self._in_use
            if other.store == load.store or self._loads - number > LAG
        ]
        self._in_use = [use for use in self._in_use if use not in done] + [(self._loads, load)]
        return [other for _, other in done]

    def _note_use(self, done: Iterable[_Load]) -> None:
        """See how much of some slots was read."""
        self._sparse |= {load for load in done if resident_share(load.region) < SPARSE}

    def _plan(self) -> None:
        """Decide whether to stream, and which slots stay in memory."""
        files = mapped_files()
        self._order = [load for load in self._order if files.hold(load.region)]
        sizes = {load.pointer: load.region.size for load in self._order}
        budget = self._budget if self._budget is not None else int(0.8 * available_memory())
        if sum(sizes.values()) <= budget:
            self._state = "fits"
            return
        self._state, self._in_use = "streaming", []
        self._window = int(budget * IN_FLIGHT)
        room = budget - self._window
        for pointer, size in sizes.items():
            if size <= room:
                self._staying.add(pointer)
                room -= size
        for place, load in enumerate(self._order):
            self._places.setdefault(load.pointer, []).append(place)
        self._drop(self._order)  # what the run that was learned from has left

    def _follow(self, pointer: int) -> None:
        places = self._places.get(pointer)
        if not places:
            return
        count = len(self._order)
        self._at += 1 + min((place - self._at - 1) % count for place in places)
        self._asked = max(self._asked, self._at)
        load = self._order[self._at % count]
        self._drop(other for other in self._done_with(load) if other.pointer != pointer)
        self._read_ahead()
        self._advisor.wait(load.region, PATIENCE)

    def _drop(self, loads: Iterable[_Load]) -> None:
        """Give up slots, but for those that stay."""
        for load in loads:
            if load.pointer not in self._staying:
                self._advisor.give(PAGEOUT, load.region)
                self._in_flight.pop(load.pointer, None)

    def _read_ahead(self) -> None:
        """Ask for the following slots as far as the window reaches, and for one in any case."""
        count = len(self._order)
        while self._asked + 1 < self._at + count:
            load = self._order[(self._asked + 1) % count]
            if load not in self._sparse:
                if load.pointer not in self._staying:
                    flying = sum(self._in_flight.values())
                    if self._asked > self._at and flying + load.region.size > self._window:
                        return
                    self._in_flight[load.pointer] = load.region.size
                self._advisor.give(WILLNEED, load.region)
            self._asked += 1


class _Advisor:
    """Gives the kernel advice in the background, in the order it came."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[int, Region]] = queue.SimpleQueue()
        self._asked = threading.Condition()
        self._waiting: dict[Region, int] = {}  # regions to be asked for, and how often
        self._thread: threading.Thread | None = None

    def give(self, advice: int, region: Region) -> None:
        """Queue a piece of advice."""
        if advice == WILLNEED:
            with self._asked:
                self._waiting[region] = self._waiting.get(region, 0) + 1
        self._jobs.put((advice, region))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="popxl-pager", daemon=True)
            self._thread.start()

    def wait(self, region: Region, seconds: float) -> None:
        """Until nothing that would read the region is queued."""
        with self._asked:
            self._asked.wait_for(lambda: region not in self._waiting, seconds)

    def _work(self) -> None:
        while True:
            advice, region = self._jobs.get()
            advise(region, advice)
            if advice == WILLNEED:
                with self._asked:
                    self._waiting[region] -= 1
                    if not self._waiting[region]:
                        del self._waiting[region]
                    self._asked.notify_all()
