"""A checkpoint that is read once from its beginning to its end: what was read leaves memory."""

from __future__ import annotations

from typing import Any

import torch

from utils.checkpoint import Checkpoint
from utils.memory import MappedPages

LARGE = 1 << 29
"""Bytes of a tensor that is not kept in memory as a whole while it is cut up."""

ROWS = 1 << 24
"""Bytes, about, of rows that are converted at once."""


class Source:
    """A checkpoint's tensors, of which one at a time is held in memory.

    Attributes:
        module: read like a transformers `BloomForCausalLM`; its tensors are `SourceTensor`s.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.module = _SourceModule(self, checkpoint.module())
        self._last: SourceTensor | None = None

    def release(self) -> None:
        """Let the pages of the tensor given last go."""
        if self._last is not None:
            self._last.release()

    def tensor(self, tensor: torch.Tensor) -> SourceTensor:
        self.release()
        self._last = SourceTensor(tensor)
        return self._last


class SourceTensor:
    """Stands in for a checkpoint's tensor where that is cut into tiles or converted as a whole."""

    def __init__(self, tensor: torch.Tensor):
        self._tensor = tensor.detach()
        self._pages = MappedPages(tensor.data_ptr(), tensor.nbytes)
        self._read = False
        self.shape = tensor.shape

    def __getitem__(self, index: Any) -> torch.Tensor:
        part = self._tensor[index]
        if self._tensor.nbytes > LARGE:
            self.release()  # of the rows before
            if part.is_contiguous():
                begin = part.data_ptr() - self._tensor.data_ptr()
                self._pages.bring(begin, begin + part.nbytes)
        elif not self._read:
            self._pages.bring(0, self._tensor.nbytes)
        self._read = True
        return part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensor, name)

    def detach(self) -> SourceTensor:
        return self

    def to(self, dtype: torch.dtype) -> torch.Tensor:
        """The tensor itself where it is of this type already."""
        if self._tensor.dtype == dtype:
            return self._tensor
        converted = torch.empty(self.shape, dtype=dtype)
        rows = max(1, ROWS * len(converted) // max(1, self._tensor.nbytes))
        for target, part in zip(converted.split(rows), self._tensor.split(rows), strict=True):
            target.copy_(part)
            self.release()
        return converted

    def release(self) -> None:
        self._pages.release()


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
