"""Values on the host that are copied to a device, and the places there that they take turns in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from popxl_torch.backends.cuda.lanes import Lanes

PLACES = 2
"""Entries of a buffer that are on the device at a time, where it is streamed."""

SLOT_PLACES = 3
"""Likewise of a buffer that is stored to: one comes, one is computed with, and one goes."""


@dataclass
class Held:
    """A value on the host: its elements in the order they lie in, and how they are a tensor."""

    flat: torch.Tensor
    shape: torch.Size
    strides: tuple[int, ...]

    @classmethod
    def of(cls, value: torch.Tensor, lanes: Lanes) -> Held:
        """One of the value's elements, pinned where there is room."""
        dense = value if is_dense(value) else value.contiguous()
        return cls(lanes.pinned(elements(dense)), dense.shape, dense.stride())

    @property
    def key(self) -> int:
        return self.flat.data_ptr()

    def tensor(self, memory: torch.Tensor | None = None) -> torch.Tensor:
        """The value: on the host, or in memory of the device."""
        flat = self.flat if memory is None else self.part(memory)
        return flat.as_strided(self.shape, self.strides)

    def part(self, memory: torch.Tensor) -> torch.Tensor:
        """Of a place's memory what the elements take."""
        return memory[: self.flat.nbytes].view(self.flat.dtype)


@dataclass(eq=False)
class Place:
    """Memory of the device: which value is there, and the ticket of the last copy to or from it."""

    memory: torch.Tensor  # bytes
    key: int | None = None
    ticket: Any = None

    def is_read(self) -> bool:
        """Whether someone still has a tensor of this memory."""
        storage = self.memory.untyped_storage()
        return torch._C._storage_Use_Count(storage._cdata) > 2  # by `memory` and by `storage`


def elements(dense: torch.Tensor) -> torch.Tensor:
    """The elements of a dense tensor in the order they lie in."""
    return dense.as_strided((dense.numel(),), (1,))


def is_dense(value: torch.Tensor) -> bool:
    """Whether its elements lie side by side, in whatever order."""
    step = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size > 1:
            if stride != step:
                return False
            step *= size
    return True
