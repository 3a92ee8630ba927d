"""A remote buffer that is stored to, such as a KV cache, where not all of it has room on a device.

Slots that have none are kept on the host and take turns in three places on the device. When one is
loaded, the slot that followed it in the last run is sent to another place under the computing; when
one has been written to, it is copied back, once all that the computing stream has been given by
then is done. A place is filled once what was there is on the host.

A slot is copied as a whole, in both directions: the buffer does not know what of it is filled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from popxl_torch.backends.cuda.lanes import Lanes
from popxl_torch.backends.cuda.places import SLOT_PLACES, Held, Place, elements, is_dense
from popxl_torch.memory.cells import Cell, Lasting, RemoteStore


class StreamedStore(RemoteStore):
    """The slots of a remote buffer, some of them on the host.

    Args:
        numbers: of the slots that are there; the others stay on the device.
    """

    def __init__(
        self,
        name: str,
        entries: int,
        lead: int,
        memory: Lasting,
        zeros: Callable[[], torch.Tensor],
        lanes: Lanes,
        numbers: set[int],
    ):
        super().__init__(name, entries, lead, memory, zeros, lambda value, store: value)
        self.lanes, self.numbers = lanes, numbers
        self._held: dict[int, Held] = {}  # what slots hold that were stored to
        self._places: list[Place] = []  # by last use; their keys are numbers of slots
        self._last: int | None = None  # the slot used last
        self._next: dict[int, int] = {}  # the slot that followed a slot

    def _slot(self, offset: int) -> Cell:
        if offset not in self.numbers:
            return super()._slot(offset)
        held = self._held.get(offset)
        if held is None:  # zeros, in memory that becomes a place when they are written to
            self._follows(offset)
            return Cell(self._zeros(), shared=False)
        place = self._with(offset) or self._sent(offset, self._spare() or self._new_place())
        self.lanes.wait(place.ticket)
        self._use(place)
        self._follows(offset)
        self._send_next(offset, place)
        return Cell(held.tensor(place.memory), shared=False)

    def _written(self, offset: int, cell: Cell) -> None:
        if offset not in self.numbers:
            return
        value = cell.tensor if is_dense(cell.tensor) else cell.tensor.contiguous()
        place = self._of(value) or self._made_of(value)
        for other in self._places:
            if other.key == offset:
                other.key = None
        place.key = offset
        self._use(place)
        held = self._held_like(value, offset)
        source = held.part(place.memory)
        place.ticket = self.lanes.copy_back(held.flat, source, self.lanes.mark())
        if place not in self._places:  # its memory may be others' when the computing goes on
            self.lanes.wait(place.ticket)

    def _held_like(self, value: torch.Tensor, offset: int) -> Held:
        """The slot's memory on the host, for a value that may be wider than the last one."""
        held = self._held.get(offset)
        if held is None or (held.shape, held.strides) != (value.shape, value.stride()):
            flat = self.lanes.host_memory(value.nbytes).view(value.dtype)
            held = self._held[offset] = Held(flat, value.shape, value.stride())
        return held

    # --- which slot follows which ---

    def _follows(self, offset: int) -> None:
        if self._last is not None:
            self._next[self._last] = offset
        self._last = offset

    def _send_next(self, offset: int, current: Place) -> None:
        """Send what followed a slot last time to another place, where there is one."""
        following = self._next.get(offset, offset)
        if following in self._held and self._with(following) is None:
            place = self._spare(current)
            if place is not None:
                self._sent(following, place)

    def _sent(self, offset: int, place: Place) -> Place:
        held = self._held[offset]
        if place.memory.nbytes < held.flat.nbytes:
            self._move(place, self.lanes.allocate(held.flat.nbytes))
        place.key = None  # until it is on its way
        # What was stored last in the slot is on the host: its place was needed for another since.
        before = [self.lanes.mark()] if place.ticket is None else [self.lanes.mark(), place.ticket]
        place.ticket = self.lanes.copy(held.part(place.memory), held.flat, *before)
        place.key = offset
        self._use(place)
        return place

    # --- places ---

    def _with(self, offset: int) -> Place | None:
        """The place where a slot is, or is on its way to."""
        return next((place for place in self._places if place.key == offset), None)

    def _of(self, value: torch.Tensor) -> Place | None:
        """The place in whose memory a value lies."""
        address = value.untyped_storage().data_ptr()
        return next((p for p in self._places if p.memory.data_ptr() == address), None)

    def _made_of(self, value: torch.Tensor) -> Place:
        """A place made of the memory of a value that lies elsewhere on the device."""
        memory = elements(value).view(torch.uint8)
        place = self._spare()
        if place is None:
            return Place(memory)
        self._move(place, memory)
        return place

    def _spare(self, current: Place | None = None) -> Place | None:
        """The place that has been used least lately of those that nobody reads; None for none."""
        if len(self._places) < SLOT_PLACES:
            self._places.append(self._new_place())
            return self._places[-1]
        return next((p for p in self._places if p is not current and not p.is_read()), None)

    def _use(self, place: Place) -> None:
        if place in self._places:
            self._places.remove(place)
            self._places.append(place)

    def _new_place(self) -> Place:
        return Place(self.lanes.allocate(0))

    def _move(self, place: Place, memory: torch.Tensor) -> None:
        """Let a place be other memory; what it was may be others' when the computing goes on."""
        if place.ticket is not None:
            self.lanes.wait(place.ticket)
        place.memory, place.key, place.ticket = memory, None, None
