"""What lasts: storage that a program writes to in place."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Cell:
    """A value that can be written: a variable, a slot of a remote buffer, a by-reference input.

    Attributes:
        tensor: what it holds, `(*mesh, *shape)`.
        shared: whether the tensor's memory is also someone else's (the program's host arrays, a
            memory map, another value); it is then copied before the first write.
    """

    __slots__ = ("tensor", "shared")

    def __init__(self, tensor: torch.Tensor, shared: bool = True):
        self.tensor, self.shared = tensor, shared

    def write(self, value: torch.Tensor) -> None:
        """Hold `value` from now on (a copy of it)."""
        if not self.shared and _holds(self.tensor, value):
            self.tensor.copy_(value)
        else:
            self.tensor, self.shared = value.clone(), False

    def writable(self, *meshes: tuple[int, ...]) -> torch.Tensor:
        """The tensor, its memory its own and wide enough for values of the given mesh sizes."""
        lead = len(meshes[0]) if meshes else 0
        shape = self.tensor.shape
        wide = torch.broadcast_shapes(shape[:lead], *meshes) + shape[lead:]
        if self.shared or wide != shape:
            self.tensor, self.shared = self.tensor.expand(wide).clone(), False
        return self.tensor


def _holds(held: torch.Tensor, value: torch.Tensor) -> bool:
    return torch.broadcast_shapes(held.shape, value.shape) == held.shape


def make_cell(value: torch.Tensor) -> Cell:
    """A cell that starts with `value`."""
    return Cell(value)


def read(cell: Cell) -> torch.Tensor:
    """What the cell holds now."""
    return cell.tensor


def write(cell: Cell, value: torch.Tensor) -> None:
    """Put `value` in the cell."""
    cell.write(value)


class RemoteStore:
    """The slots of one remote buffer. A slot never written holds zeros."""

    def __init__(self, name: str, entries: int, zeros: Callable[[], torch.Tensor]):
        self._name, self._entries, self._zeros = name, entries, zeros
        self._slots: dict[int, Cell] = {}
        self.__name__ = name

    def cell(self, offset: int | torch.Tensor) -> Cell:
        """The slot itself.

        Raises:
            IndexError: outside the buffer, or where replicas give different offsets.
        """
        at = self._index(offset)
        if at not in self._slots:
            self._slots[at] = Cell(self._zeros(), shared=False)
        return self._slots[at]

    def load(self, offset: int | torch.Tensor) -> torch.Tensor:
        """What a slot holds: its own memory, not a copy."""
        return self.cell(offset).tensor

    def store(self, value: torch.Tensor, offset: int | torch.Tensor) -> None:
        """Copy `value` into a slot."""
        self.cell(offset).write(value)

    def place(self, offset: int, cell: Cell) -> None:
        """Make `cell` the slot."""
        self._slots[offset] = cell

    def _index(self, offset: int | torch.Tensor) -> int:
        if isinstance(offset, torch.Tensor):
            offsets = offset.reshape(-1) if offset.numel() == 1 else offset.unique()
            if offsets.numel() > 1:
                raise IndexError(
                    f"{self._name}: replicas give different offsets, {offsets.tolist()}; "
                    "one offset for all replicas is supported"
                )
            offset = int(offsets)
        if not 0 <= offset < self._entries:
            raise IndexError(
                f"{self._name}: offset {offset} is outside its {self._entries} entries"
            )
        return offset
