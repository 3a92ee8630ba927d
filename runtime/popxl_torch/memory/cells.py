"""What lasts: storage that a program writes to in place."""

from __future__ import annotations

from collections.abc import Callable

import torch

from popxl_torch.backends.reference.functions import Bounds, put_part
from popxl_torch.lowering.placement import where
from popxl_torch.memory.arrays import broadcast_shapes
from popxl_torch.replay.decisions import numbers


class Lasting:
    """The memory of a session that is there from run to run.

    Attributes:
        moves: how often a cell of it has become other memory.
    """

    __slots__ = ("moves",)

    def __init__(self) -> None:
        self.moves = 0


class Cell:
    """A value that can be written: a variable, a slot of a remote buffer, a by-reference input.

    Attributes:
        tensor: what it holds, `(*mesh, *shape)`.
        shared: whether the tensor's memory is also someone else's (the program's host arrays, a
            memory map, another value); it is then copied before the first write.
        lasting: the memory that it is a part of; None where it lasts for a run at most.
    """

    __slots__ = ("tensor", "shared", "lasting")

    def __init__(self, tensor: torch.Tensor, shared: bool = True, lasting: Lasting | None = None):
        self.tensor, self.shared, self.lasting = tensor, shared, lasting

    def move(self, tensor: torch.Tensor, shared: bool) -> None:
        """Hold other memory from now on."""
        self.tensor, self.shared = tensor, shared
        if self.lasting is not None:
            self.lasting.moves += 1

    def share(self) -> torch.Tensor:
        """What it holds, which no write will change: the next one goes to other memory."""
        self.move(self.tensor, True)
        return self.tensor

    def write(self, value: torch.Tensor) -> None:
        """Hold `value` from now on (a copy of it)."""
        if not self.shared and _holds(self.tensor, value):
            self.tensor.copy_(value)
        else:
            self.move(value.to(self.tensor.device).clone(), False)

    def writable(self, *meshes: tuple[int, ...]) -> torch.Tensor:
        """The tensor, its memory its own and wide enough for values of the given mesh sizes."""
        lead = len(meshes[0]) if meshes else 0
        shape = self.tensor.shape
        wide = broadcast_shapes(shape[:lead], *meshes) + shape[lead:]
        if self.shared or wide != shape:
            self.move(self.tensor.expand(wide).clone(), False)
        return self.tensor


def _holds(held: torch.Tensor, value: torch.Tensor) -> bool:
    return broadcast_shapes(held.shape, value.shape) == held.shape


def make_cell(value: torch.Tensor) -> Cell:
    """A cell that starts with `value`."""
    return Cell(value)


def read(cell: Cell) -> torch.Tensor:
    """What the cell holds now."""
    return cell.tensor


def write(cell: Cell, value: torch.Tensor) -> None:
    """Put `value` in the cell."""
    cell.write(value)


def write_part(cell: Cell, value: torch.Tensor, lead: int, bounds: Bounds) -> None:
    """Put `value` in a part of what the cell holds."""
    put_part(cell.writable(value.shape[:lead]), value, bounds)


class RemoteStore:
    """The slots of one remote buffer. A slot never written holds zeros.

    Offsets are numbers, or tensors `(*mesh)` or `(*mesh, 1)` that may differ between replicas.

    Raises:
        IndexError: from every method that takes an offset, where it is outside the buffer.
    """

    def __init__(
        self,
        name: str,
        entries: int,
        lead: int,
        memory: Lasting,
        zeros: Callable[[], torch.Tensor],
        loads: Callable[[torch.Tensor, str], torch.Tensor],
    ):
        """
        Args:
            memory: the session's, which slots are a part of.
            zeros: makes what a slot holds before it is written to.
            loads: given what a slot that is about to be used holds, and the store's name, gives
                that where it is computed with.
        """
        self._name, self._entries, self._lead = name, entries, lead
        self._memory, self._zeros, self._loads = memory, zeros, loads
        self._slots: dict[int, Cell] = {}
        self.__name__ = name

    def load(self, offset: int | torch.Tensor) -> torch.Tensor:
        """What a slot holds: its own memory, not a copy, unless replicas load different slots."""
        first, *others = self._distinct(offset)
        value = self._loads(self._slot(first).tensor, self._name)
        for at in others:
            other = self._loads(self._slot(at).tensor, self._name)
            value = where(self._replicas_at(offset, at, value.ndim), other, value)
        return value

    def store(self, value: torch.Tensor, offset: int | torch.Tensor) -> None:
        """Copy `value` into a slot."""
        offsets = self._distinct(offset)
        for at in offsets:
            slot = self._slot(at)
            here = value
            if len(offsets) > 1:
                here = where(self._replicas_at(offset, at, value.ndim), value, slot.tensor)
            slot.write(here)
            self._written(at, slot)

    def open(self, offset: int | torch.Tensor) -> Cell:
        """A cell to work on and give to `close`: the slot itself where there is but one."""
        offsets = self._distinct(offset)
        if len(offsets) == 1:
            return self._slot(offsets[0])
        return Cell(self.load(offset), shared=False)

    def close(self, cell: Cell, offset: int | torch.Tensor) -> None:
        """Store what `open` gave for this offset."""
        offsets = self._distinct(offset)
        if len(offsets) > 1:
            self.store(cell.tensor, offset)
        else:
            self._written(offsets[0], cell)

    def place(self, offset: int, cell: Cell) -> None:
        """Make `cell` the slot."""
        self._slots[offset] = cell
        self._memory.moves += 1

    def _slot(self, offset: int) -> Cell:
        """The slot, where it is computed with."""
        if offset not in self._slots:
            self.place(offset, Cell(self._zeros(), shared=False, lasting=self._memory))
        return self._slots[offset]

    def _written(self, offset: int, cell: Cell) -> None:
        """A cell that `_slot` gave has been written to."""

    def _distinct(self, offset: int | torch.Tensor) -> list[int]:
        """The slots that replicas reach, checked."""
        offsets = [offset] if isinstance(offset, int) else sorted(set(numbers(offset.flatten())))
        for at in offsets:
            if not 0 <= at < self._entries:
                raise IndexError(
                    f"{self._name}: offset {at} is outside its {self._entries} entries"
                )
        return offsets

    def _replicas_at(self, offset: int | torch.Tensor, at: int, axes: int) -> torch.Tensor:
        """Where in the mesh the offset is `at`, to be broadcast against a slot of so many axes."""
        here = torch.as_tensor(offset) == at
        mesh = here.shape[: self._lead]
        return here.reshape(*mesh, *(1,) * (axes - self._lead))
