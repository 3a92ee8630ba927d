"""Memory for the results of recordings, used again and again."""

from __future__ import annotations

import math

import torch
from torch.utils._python_dispatch import _disable_current_modes


class Scratch:
    """Blocks of memory that are handed out anew once no tensor lies in them.

    A recording that does the same again in the same order may lay later results where earlier ones
    were, as they did when it was made: only addresses are written down. Recordings of one session
    never run at the same time, so they share their blocks.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, torch.UntypedStorage] = {}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Like `torch.empty`, in a block that is free."""
        needed = max(math.prod(shape) * dtype.itemsize, 1)
        with _disable_current_modes():
            block = self._free(needed)
            if block is None:
                block = torch.empty(needed, dtype=torch.uint8).untyped_storage()
                self._blocks[block._cdata] = block
            stride = torch.empty(shape, device="meta").stride()
            return torch.empty(0, dtype=dtype).set_(block, 0, shape, stride)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies in a block."""
        return tensor.untyped_storage()._cdata in self._blocks

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self._blocks)

    def bytes(self, first: int = 0) -> int:
        """Of all blocks, or of those that were made after the first ones."""
        return sum(block.nbytes() for block in [*self._blocks.values()][first:])

    def forget(self, first: int) -> None:
        """Hand out no block again that was made after the first ones."""
        for key in [*self._blocks][first:]:
            del self._blocks[key]

    def _free(self, needed: int) -> torch.UntypedStorage | None:
        """The smallest block that is free and large enough."""
        fit = [b for b in self._blocks.values() if b.nbytes() >= needed and _is_free(b)]
        return min(fit, key=lambda block: block.nbytes(), default=None)


class Copies:
    """Copies of a result that is written to in every run.

    The system clears memory that is new, so that of copies which nobody has any more is used again.
    """

    KEPT = 2

    def __init__(self, result: torch.Tensor) -> None:
        self.result = result
        self._held: list[torch.UntypedStorage] = []
        self._stride: tuple[int, ...] = ()

    def copy(self) -> torch.Tensor:
        """What the result holds now, in memory that is nobody else's."""
        for block in self._held:
            if _is_free(block):
                place = torch.empty(0, dtype=self.result.dtype)
                place.set_(block, 0, self.result.shape, self._stride)
                return place.copy_(self.result)
        made = self.result.clone()
        self._stride = made.stride()
        self._held = [made.untyped_storage(), *self._held[: self.KEPT - 1]]
        return made


def _is_free(block: torch.UntypedStorage) -> bool:
    return torch._C._storage_Use_Count(block._cdata) == 1  # the one that is held here
