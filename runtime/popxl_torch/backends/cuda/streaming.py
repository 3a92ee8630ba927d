"""Weights that have no room on the device: kept on the host, and copied in as they are needed.

A loop over layers loads an entry of every buffer in each round. Of a buffer whose entries do not
all fit, some stay on the device, spread evenly; the others take turns in two places there. When one
is loaded, the entry that followed it in the last run is sent to the other place, beside the
computing: its copy waits for all that the computing stream has been given by then, the last use of
what was there among it. So a layer is copied while the one before it is computed, and nothing that
is still read is written to.

Streaming waits for the link to the host, hundreds of times longer than for launches: what is gained
by CUDA graphs is nothing there, and they are off.
"""

from __future__ import annotations

import torch
from popxl.tensor import Variable

from popxl_torch.backends.cuda.lanes import Lanes
from popxl_torch.backends.cuda.places import PLACES, Held, Place
from popxl_torch.lowering.placement import load


class Streamer:
    """Brings entries of buffers to the device.

    Attributes:
        variables: those that are streamed.
    """

    def __init__(self, lanes: Lanes, variables: set[Variable]):
        self.lanes, self.variables = lanes, variables
        self._held: dict[int, Held] = {}  # by key, the address of the value
        self._places: dict[str, list[Place]] = {}  # by store
        self._last: dict[str, int] = {}  # the key loaded last, by store
        self._next: dict[int, int] = {}  # the key that followed a key

    def hold(self, value: torch.Tensor, old: torch.Tensor | None = None) -> torch.Tensor:
        """Keep a value on the host, in place of an old one; returns what to load it by.

        One whose elements are all the same memory, such as the zeros before there are weights, is
        as good where it is.
        """
        self.lanes.settle()
        for places in self._places.values():
            for place in places:
                place.key = None
        if old is not None:
            self._held.pop(old.data_ptr(), None)
        if 0 in value.stride():
            return value
        held = Held.of(value, self.lanes)
        self._held[held.key] = held
        return held.tensor()

    def load(self, value: torch.Tensor, store: str) -> torch.Tensor:
        """A value of a store on the device: itself, where it is not held on the host."""
        held = self._held.get(value.data_ptr())
        if held is None:
            return value if value.device == self.lanes.device else load(value, self.lanes.device)
        place = self._with(held.key, store) or self._send(held, store)
        self.lanes.wait(place.ticket)
        self._send_next(held.key, store, place)
        return held.tensor(place.memory)

    def _with(self, key: int, store: str) -> Place | None:
        """The place where a value is, or is on its way to."""
        return next((p for p in self._places.get(store, []) if p.key == key), None)

    def _send(self, held: Held, store: str) -> Place:
        """A place with the value on its way to it, one that nobody reads."""
        place = self._spare(held, store)
        if place is None:  # there are few: it is forgotten when it is read
            place = Place(self.lanes.allocate(held.flat.nbytes))
        return self._copied(held, place)

    def _send_next(self, key: int, store: str, current: Place) -> None:
        """Send what followed a value last time to the other place, where that is no longer read."""
        last = self._last.get(store)
        if last is not None:
            self._next[last] = key
        self._last[store] = key
        following = self._held.get(self._next.get(key, key))
        if following is not None and self._with(following.key, store) is None:
            place = self._spare(following, store, current)
            if place is not None:
                self._copied(following, place)

    def _spare(self, held: Held, store: str, current: Place | None = None) -> Place | None:
        """A place of the store that nobody reads, the one loaded last only if it must be."""
        size = held.flat.nbytes
        if store not in self._places:
            self._places[store] = [Place(self.lanes.allocate(size)) for _ in range(PLACES)]
        fitting = [
            place
            for place in self._places[store]
            if place is not current and place.memory.nbytes >= size and not place.is_read()
        ]
        return min(fitting, key=lambda p: p.key == self._last.get(store), default=None)

    def _copied(self, held: Held, place: Place) -> Place:
        place.key = held.key
        place.ticket = self.lanes.copy(held.part(place.memory), held.flat, self.lanes.mark())
        return place
