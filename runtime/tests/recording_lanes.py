"""Stands in for a GPU's streams: everything is on the CPU, and what is asked for is written down.

A copy is under way from when it is asked for until it is waited for: until then its target holds
nonsense, and what it copies may still be overwritten, as it may on a GPU. Copies that it is to come
after are done before; other ones may be late.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Literal

import torch


@dataclass(eq=False)
class Copy:
    """A copy that was asked for.

    Attributes:
        kind: "copy" to the device, "copy_back" from it.
        address: of what it copies to or from on the device.
        after: how many events had been written down when what it waits for was marked.
        asked: how many when it was asked for.
        before: the copies that it is to come after.
        under_way: whether it is not yet done.
        waited: how many events when it was waited for first.
    """

    kind: Literal["copy", "copy_back"]
    address: int
    target: torch.Tensor
    source: torch.Tensor
    after: int
    asked: int
    before: list[Copy]
    under_way: bool = True
    waited: int | None = None


@dataclass
class RecordingLanes:
    """`Lanes` on a CPU.

    Attributes:
        free: bytes that the device is said to have.
        events: what happened, in order: numbers of copies, and what tests add of computing.
    """

    free: int
    device: torch.device = torch.device("cpu")
    events: list = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    allocated: int = 0

    def free_bytes(self) -> int:
        return self.free

    def allocate(self, size: int) -> torch.Tensor:
        self.allocated += size
        return torch.empty(size, dtype=torch.uint8)

    def pinned(self, source: torch.Tensor) -> torch.Tensor:
        return source

    def host_memory(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def mark(self) -> int:
        return len(self.events)

    def copy(self, target: torch.Tensor, source: torch.Tensor, *after: int | Copy) -> Copy:
        return self._asked("copy", target.data_ptr(), alias(target), source, after)

    def copy_back(self, target: torch.Tensor, source: torch.Tensor, *after: int | Copy) -> Copy:
        return self._asked("copy_back", source.data_ptr(), target, alias(source), after)

    def wait(self, ticket: Copy) -> None:
        if ticket.waited is None:
            ticket.waited = len(self.events)
        self._finish(ticket)

    def settle(self) -> None:
        for copy in self.copies:
            self._finish(copy)

    def _asked(
        self,
        kind: Literal["copy", "copy_back"],
        address: int,
        target: torch.Tensor,
        source: torch.Tensor,
        after: tuple[int | Copy, ...],
    ) -> Copy:
        before = [copy for copy in after if isinstance(copy, Copy)]
        (mark,) = (mark for mark in after if isinstance(mark, int))
        copy = Copy(kind, address, target, source, mark, len(self.events), before)
        for earlier in before:
            self._finish(earlier)
        target.view(torch.uint8).fill_(255)  # of floats: not a number
        self.copies.append(copy)
        self.events.append((kind, len(self.copies) - 1))
        return copy

    def _finish(self, copy: Copy) -> None:
        if copy.under_way:
            copy.under_way = False
            copy.target.copy_(copy.source)


def alias(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's memory, which is not kept for that: as a GPU's stream does not keep it."""
    memory = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
    return torch.frombuffer(memory, dtype=tensor.dtype)
