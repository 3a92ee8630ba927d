"""Trees of tensors, and of the host arrays that belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import popxl

from .dot_tree import DotTree

TensorMap = Mapping[popxl.Tensor, popxl.Tensor]


class NamedTensors(DotTree[popxl.Tensor]):
    """A tree of tensors: a layer's variables, or a graph's inputs for them."""

    @property
    def tensors(self) -> tuple[popxl.Tensor, ...]:
        """All tensors, in the order of the tensors' own names."""
        return tuple(sorted(self.values_flat(), key=lambda t: t.name))

    @property
    def named_tensors(self) -> dict[str, popxl.Tensor]:
        """From dotted names to tensors."""
        return self.to_dict()

    def remap(self, mapping: TensorMap) -> Self:
        """The same names with each tensor replaced by `mapping[tensor]`.

        Raises:
            KeyError: where `mapping` lacks one of the tensors.
        """
        missing = [name for name, t in self.to_dict().items() if t not in mapping]
        if missing:
            raise KeyError(f"the mapping has no tensor for {', '.join(missing)}")
        return self.map(lambda t: mapping[t])


class NamedTensorData(DotTree[np.ndarray]):
    """A tree of host arrays, named as the variables they are the values of."""
