"""A weight matrix in the precision that the settings give weights: its variables and its use.

Its elements are those of a checkpoint's `(out, in)`; rows (`out`) are split over one axis of
parallelism and columns (`in`) over the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_shared import channels, groups

from config import BloomConfig
from modelling.quantization import quantize_matrix
from modelling.quantized_matmul import (
    channel_quantized_matmul,
    group_decompressed,
    group_quantized_matmul,
)
from modelling.sharding import (
    Axis,
    blank,
    shard_matrix,
    split_over,
    split_over_both,
)

Tensors = Sequence[popxl.Tensor]
"""Those of a weight's variables, in the order of its names."""


class Weight:
    """A weight as it is, in the type of the activations. Others derive from it.

    Args:
        rows: the axis of parallelism that rows are split over.
        table: the variable with the elements is `(out, in)`, for `rows_at`; otherwise it is
            `(in, out)` with its bytes as the checkpoint's, the fast order for one-token matmuls.

    Attributes:
        names: of its variables.
    """

    names: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, config: BloomConfig, rows: Axis, table: bool = False):
        self.config, self.rows, self.table = config, rows, table

    def add_to(
        self, module: addons.Module, out_features: int, in_features: int
    ) -> tuple[popxl.Tensor, ...]:
        """Its variables as inputs of the graph that `module` builds; features are a shard's."""
        dtype = self.config.model.dtype
        return (self._add(module, "weight", self._matrix(out_features, in_features), dtype),)

    def matmul(self, x: popxl.Tensor, tensors: Tensors) -> popxl.Tensor:
        """From `(tokens, in)` to `(tokens, out)`."""
        return x @ self._in_by_out(tensors[0])

    def rows_at(
        self, indices: popxl.Tensor, tensors: Tensors, zero_outside: bool = False
    ) -> popxl.Tensor:
        """Rows of a table, `(indices, in)`.

        Args:
            zero_outside: give zeros for an index that is out of range.
        """
        return ops.gather(tensors[0], indices, zero_OOR=zero_outside)

    def values(self, weight: Any, height: int | None = None) -> dict[str, np.ndarray]:
        """The host data of its variables for a checkpoint's tensor.

        Args:
            height: of the whole; rows of zeros are added up to it.

        Raises:
            QuantisationError: where it is not finite, and so cannot be quantised.
        """
        return {"weight": self._swapped(shard_matrix(self.config, weight, self.rows, height))}

    def _matrix(self, out_features: int, in_features: int) -> tuple[int, int]:
        return (out_features, in_features) if self.table else (in_features, out_features)

    def _in_by_out(self, matrix: popxl.Tensor) -> popxl.Tensor:
        return ops.transpose(matrix) if self.table else matrix

    def _swapped(self, matrix: np.ndarray) -> np.ndarray:
        return matrix if self.table else matrix.swapaxes(-1, -2)

    def _add(
        self,
        module: addons.Module,
        name: str,
        shape: tuple[int, ...],
        dtype: popxl.dtypes.dtype,
        grouping: popxl.ReplicaGrouping | None = None,
    ) -> popxl.Tensor:
        grouping = grouping or split_over_both()
        return module.add_variable_input(
            name, blank(shape, dtype), dtype, replica_grouping=grouping
        )


class ChannelQuantizedWeight(Weight):
    """8 bits an element, and a scale for each row, which is the same for all parts of the row."""

    names = ("weight", "weight_scale")

    def add_to(self, module, out_features, in_features):
        matrix, scales = self._matrix(out_features, in_features), split_over(self.config, self.rows)
        return (
            self._add(module, "weight", matrix, popxl.int8),
            self._add(module, "weight_scale", (out_features,), popxl.float32, scales),
        )

    def matmul(self, x, tensors):
        weight, scale = tensors
        return _call(channel_quantized_matmul, x, self._in_by_out(weight), scale)

    def rows_at(self, indices, tensors, zero_outside=False):
        numbers, scale = (ops.gather(t, indices, zero_OOR=zero_outside) for t in tensors)
        rows = ops.cast(numbers, popxl.float32) * ops.reshape(scale, (-1, 1))
        return ops.cast(rows, self.config.model.dtype)

    def values(self, weight, height=None):
        height = height or weight.shape[0]
        numbers, scale = quantize_matrix(self.config, weight, self.rows, height, channels.quantised)
        return {"weight": self._swapped(numbers), "weight_scale": scale}


class GroupQuantizedWeight(Weight):
    """4 bits an element in groups along rows, named and laid out as `LinearGQ` has them."""

    names = ("weight_compressed", "weight_decompression_scale", "weight_decompression_bias")

    def add_to(self, module, out_features, in_features):
        size = self.config.model.group_size
        words, scale = groups.shapes(out_features, in_features, size)
        kinds = (words, popxl.uint16), (scale, popxl.float16), (scale, popxl.float16)
        return tuple(
            self._add(module, name, *kind) for name, kind in zip(self.names, kinds, strict=True)
        )

    def matmul(self, x, tensors):
        return _call(group_quantized_matmul, x, *tensors)

    def rows_at(self, indices, tensors, zero_outside=False):
        words, scale, bias = (ops.gather(t, indices, zero_OOR=zero_outside) for t in tensors)
        return group_decompressed(words, scale, bias, self.config.model.dtype)

    def values(self, weight, height=None):
        size, height = self.config.model.group_size, height or weight.shape[0]
        quantize = partial(groups.quantised, group_size=size)
        in_groups = getattr(weight, "in_groups", None)  # of a matrix that is stored in 4 bits
        ready = in_groups(size) if in_groups else None
        arrays = quantize_matrix(self.config, weight, self.rows, height, quantize, ready)
        return dict(zip(self.names, arrays, strict=True))


KINDS: dict[str, type[Weight]] = {
    "full": Weight,
    "int8": ChannelQuantizedWeight,
    "int4": GroupQuantizedWeight,
}
"""By `weight_precision`."""


def weight_of(config: BloomConfig, rows: Axis, table: bool = False) -> Weight:
    """A weight of the kind that the settings ask for; the arguments are those of `Weight`."""
    return KINDS[config.model.weight_precision](config, rows, table)


def _call(function: Any, *tensors: popxl.Tensor) -> popxl.Tensor:
    graph = popxl.gir().create_graph(function, *tensors)
    (result,) = ops.call(graph, *tensors)
    return result
