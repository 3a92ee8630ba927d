"""What back ends are asked to compute, and how it lies: the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

FEW_ROWS = 16
"""Rows of a product up to which a CPU waits for memory, not for sums: weights are used where they
lie and as they are, and a row's result does not depend, to the bit, on how many other rows there
are."""


@dataclass(frozen=True)
class StoredWeight:
    """The weight of a product, `(*mesh, in, outputs)`.

    Attributes:
        tensor: floats or int8 `(*mesh, in, outputs)`, or words of four numbers, uint16
            `(*mesh, outputs, groups, group_size / 4)`.
        scale: of int8 `(*mesh, outputs)`, of words `(*mesh, outputs, groups, 1)`.
        offset: of words, like their scale.
    """

    tensor: torch.Tensor
    scale: torch.Tensor | None = None
    offset: torch.Tensor | None = None

    @property
    def grouped(self) -> bool:
        return self.offset is not None

    def sizes(self) -> tuple[int, int, int]:
        """Inputs, outputs, and elements of a group (0 where there are none)."""
        if self.grouped:
            outputs, groups, words = self.tensor.shape[-3:]
            return groups * words * 4, outputs, words * 4
        return self.tensor.shape[-2], self.tensor.shape[-1], 0

    def fits(self) -> bool:
        """Whether the kernels read a weight that lies like this."""
        if self.grouped:
            assert self.scale is not None and self.offset is not None
            *_, outputs, groups, words = self.tensor.shape
            size = words * 4
            rows = [self.tensor.stride()[-2:], *(t.stride()[-2:-1] for t in self.scales())]
            return (
                size >= 8
                and size & (size - 1) == 0
                and rows == [(words, 1), (1,), (1,)]
                and self.scale.stride() == self.offset.stride()
                and self.scale.dtype == self.offset.dtype
                and self.scale.shape == self.offset.shape
            )
        return 1 in self.strides()

    def strides(self) -> tuple[int, int]:
        """Of outputs and of inputs, in elements; a kernel reads along the one that is 1."""
        if self.grouped:
            return self.tensor.stride(-3), 1
        inputs, outputs = self.tensor.stride()[-2:]
        size, count, _ = self.sizes()
        if inputs == 1 or size == 1:
            return outputs, 1
        return (1 if count == 1 else outputs), inputs

    def scale_stride(self) -> int:
        """From an output's scale to the next one's, in elements; 0 where there are none."""
        if self.scale is None:
            return 0
        return self.scale.stride(-3 if self.grouped else -1)

    def scales(self) -> list[torch.Tensor]:
        """The scales and offsets that there are."""
        return [t for t in (self.scale, self.offset) if t is not None]
