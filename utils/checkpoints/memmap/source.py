"""A checkpoint that is read once from its beginning to its end: what was read leaves memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from utils.checkpoints.checkpoint import Checkpoint
from utils.our_runtime import MappedPages

WINDOW = 1 << 25
"""Bytes of a tensor that are in memory at once while it is cut up or converted."""

ROWS = 1 << 20
"""Bytes, about, of rows that are converted at once: they stay in a processor's cache."""


class Source:
    """A checkpoint's tensors, of which one at a time is held in memory.

    Args:
        check: called before each tensor is read; raises where it should not be.

    Attributes:
        module: read like the checkpoint's; its tensors are `SourceTensor`s.
    """

    def __init__(self, checkpoint: Checkpoint, check: Callable[[], None]):
        self.module = _SourceModule(self, checkpoint.module())
        self._last: SourceTensor | None = None
        self._check = check

    def release(self) -> None:
        """Let the pages of the tensor given last go."""
        if self._last is not None:
            self._last.release()

    def tensor(self, tensor: torch.Tensor) -> SourceTensor:
        self._check()
        self.release()
        self._last = SourceTensor(tensor)
        return self._last


class SourceTensor:
    """Stands in for a checkpoint's tensor where that is cut into tiles or converted as a whole.

    It is meant to be read from its first row to its last: the rows that follow are prefetched from
    the disk, and those before leave memory.
    """

    def __init__(self, tensor: torch.Tensor):
        self._tensor = tensor.detach()
        self._pages = MappedPages(tensor.data_ptr(), tensor.nbytes)
        self._window = (0, 0)
        self.shape = tensor.shape
        self.in_groups = getattr(tensor, "in_groups", None)  # which a detached tensor has not

    def __getitem__(self, index: Any) -> torch.Tensor:
        part = self._tensor[index]
        if part.is_contiguous():
            begin = part.data_ptr() - self._tensor.data_ptr()
            self._bring(begin, begin + part.nbytes)
        return part

    def _bring(self, begin: int, end: int) -> None:
        """Have bytes `begin:end` in the window of what is in memory."""
        first, last = self._window
        if first <= begin and end <= last:
            return
        self._pages.release(first, begin if first <= begin < last else last)
        self._window = (begin, max(end, begin + WINDOW))
        self._pages.bring(*self._window)
        self._pages.expect(self._window[1], self._window[1] + WINDOW)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensor, name)

    def detach(self) -> SourceTensor:
        return self

    def to(self, dtype: torch.dtype) -> torch.Tensor:
        """The tensor itself where it is of this type already."""
        if self._tensor.dtype == dtype:
            return self._tensor
        # From numpy, which asks the system for huge pages: fewer of them have to be made.
        memory = np.empty(self._tensor.numel() * dtype.itemsize, np.uint8)
        converted = torch.from_numpy(memory).view(dtype).reshape(self.shape)
        rows = max(1, ROWS * len(converted) // max(1, self._tensor.nbytes))
        for begin in range(0, len(converted), rows):
            converted[begin : begin + rows] = self[begin : begin + rows]
        return converted

    def release(self) -> None:
        """Let its pages in memory go."""
        self._pages.release(*self._window)
        self._window = (0, 0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch uses one thread: the others have files to write, and waiting for them costs
    more than they would do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _SourceModule:
    def __init__(self, source: Source, module: Any):
        self._source, self._module = source, module

    def __getattr__(self, name: str) -> Any:
        return self._wrapped(getattr(self._module, name))

    def __getitem__(self, index: int) -> Any:
        return self._wrapped(self._module[index])

    def _wrapped(self, found: Any) -> Any:
        if isinstance(found, torch.Tensor):
            return self._source.tensor(found)
        return _SourceModule(self._source, found)
