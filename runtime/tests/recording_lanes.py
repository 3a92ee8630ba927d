"""Stands in for a GPU's streams: everything is on the CPU, and what is asked for is written down.

A copy is under way from when it is asked for until it is waited for: until then its target holds
nonsense, as it may on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class Copy:
    """A copy that was asked for.

    Attributes:
        address: of what it copies to.
        after: how many events had been written down when what it waits for was marked.
        asked: how many when it was asked for.
        target: what it copies to, until it is done.
        waited: how many when it was waited for first.
    """

    address: int
    source: torch.Tensor
    after: int
    asked: int
    target: torch.Tensor | None
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

    def mark(self) -> int:
        return len(self.events)

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: int) -> Copy:
        target.view(torch.uint8).fill_(255)  # of floats: not a number
        self.copies.append(Copy(target.data_ptr(), source, after, len(self.events), target))
        self.events.append(("copy", len(self.copies) - 1))
        return self.copies[-1]

    def wait(self, ticket: Copy) -> None:
        if ticket.target is not None:
            ticket.target.copy_(ticket.source)
            ticket.target, ticket.waited = None, len(self.events)

    def settle(self) -> None:
        pass
