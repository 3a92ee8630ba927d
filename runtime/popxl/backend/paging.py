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
from dataclasses import dataclass

import torch

from popxl.backend.memory import (
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

AHEAD = 0.25
"""The share of the budget that may be filled by reading ahead."""

SPARSE = 0.5
"""A slot of which less is in memory after its use is one that rows are picked from."""


@dataclass(frozen=True)
class _Load:
    """One load in the order of a run."""

    region: Region
    stays: bool
    sparse: bool


class Pager:
    """Reads ahead and drops the mapped slots of one session.

    Args:
        budget: bytes that mapped slots may take; 80 % of the memory that is available where None.
    """

    def __init__(self, budget: int | None = None):
        self._budget = budget
        self._seen: list[tuple[int, Region]] = []  # the loads of the run that is learned from
        self._sparse: set[int] = set()
        self._order: list[_Load] = []
        self._places: dict[int, list[int]] = {}
        self._state = "learning"
        self._at = self._asked = -1
        self._jobs: queue.SimpleQueue[tuple[int, Region]] = queue.SimpleQueue()

    @property
    def streams(self) -> bool:
        """Whether the mapped slots are known to be larger than the budget."""
        return self._state == "streaming"

    @property
    def fits(self) -> bool:
        """Whether loads need not be followed: slots fit the budget, or no large one was loaded."""
        return self._state == "fits" or (self._state == "learning" and not self._seen)

    def forget(self) -> None:
        """Slots have got other memory: learn anew."""
        self._seen, self._order, self._state = [], [], "learning"
        self._sparse = set()

    def begins(self) -> None:
        """A run begins."""
        if self._state == "learning" and self._seen:
            self._note_use()
            self._plan()

    def loads(self, tensor: torch.Tensor) -> None:
        """A slot is about to be used."""
        if self._state == "streaming":
            self._follow(tensor.data_ptr())
        elif self._state == "learning" and tensor.nbytes >= SMALL:
            self._note_use()
            self._seen.append((tensor.data_ptr(), Region.of(tensor)))

    def _note_use(self) -> None:
        """See how much of the slot loaded last was read."""
        if self._seen and resident_share(self._seen[-1][1]) < SPARSE:
            self._sparse.add(len(self._seen) - 1)

    def _plan(self) -> None:
        """Decide whether to stream, and which slots stay in memory."""
        files = mapped_files()
        seen = [
            (pointer, region, number in self._sparse)
            for number, (pointer, region) in enumerate(self._seen)
            if files.hold(region)
        ]
        total = sum({region.start: region.size for _, region, _ in seen}.values())
        budget = self._budget if self._budget is not None else int(0.8 * available_memory())
        if total <= budget:
            self._state = "fits"
            return
        self._window = int(budget * AHEAD)
        room = budget - self._window
        staying: dict[int, bool] = {}
        for pointer, region, _ in seen:
            if pointer not in staying:
                staying[pointer] = region.size <= room
                room -= region.size * staying[pointer]
        self._order = [_Load(region, staying[p], sparse) for p, region, sparse in seen]
        self._places = {}
        for place, (pointer, _, _) in enumerate(seen):
            self._places.setdefault(pointer, []).append(place)
        self._state, self._at, self._asked = "streaming", -1, 0
        threading.Thread(target=_work, args=(self._jobs,), name="popxl-pager", daemon=True).start()

    def _follow(self, pointer: int) -> None:
        places = self._places.get(pointer)
        if not places:
            return
        before, count = self._at, len(self._order)
        self._at = min(places, key=lambda place: (place - before - 1) % count)
        self._drop(before)
        self._read_ahead()

    def _drop(self, place: int) -> None:
        """Give up the slot loaded before, unless it stays or is the one in use."""
        if place < 0:
            return
        used = self._order[place]
        if not used.stays and used.region != self._order[self._at].region:
            self._jobs.put((PAGEOUT, used.region))

    def _read_ahead(self) -> None:
        """Ask for the following slots, as far as the window reaches."""
        count, reach = len(self._order), 0
        for step in range(1, count):
            place = (self._at + step) % count
            load = self._order[place]
            reach += load.region.size * (not load.sparse)
            if reach > self._window and step > 1:
                return
            if self._is_new(place) and not load.sparse:
                self._jobs.put((WILLNEED, load.region))
                self._asked = place

    def _is_new(self, place: int) -> bool:
        """Whether a slot ahead has not been asked for in this round."""
        count = len(self._order)
        return (place - self._at) % count > (self._asked - self._at) % count


def _work(jobs: queue.SimpleQueue[tuple[int, Region]]) -> None:
    while True:
        advice, region = jobs.get()
        advise(region, advice)
