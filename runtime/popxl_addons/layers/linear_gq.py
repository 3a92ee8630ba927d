"""A matmul with a weight of 4 bits an element, quantised in groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
from popxl.utils import to_numpy
from popxl_shared.groups import PER_WORD, shapes

from ..initialisers import full
from ..module import Module
from ..named_tensors import NamedTensors
from ..ops.group_quantize_decompress import (
    group_quantize_compress_numpy,
    group_quantize_decompress,
)
from ..utils import WeightsDict


class LinearGQ(Module):
    """`x @ weight + bias` with the weight, `(in_features, out_features)`, decompressed first.

    Its variables start as zeros: write the results of `group_quantize_compress_numpy` to
    `weight_compressed`, `weight_decompression_scale` and `weight_decompression_bias`.
    """

    def __init__(
        self,
        out_features: int,
        bias: bool = True,
        replica_grouping: popxl.ReplicaGrouping | None = None,
        group_size: int = 0,
        dim: int = -1,
    ):
        """
        Args:
            replica_grouping: of all variables; groups hold different shards of them.
            group_size: elements that share a scale: a multiple of 4 that divides dimension
                `dim` of the weight.
            dim: the dimension of the weight that groups lie along, 0, 1 or -1.

        Raises:
            ValueError: for another `group_size` or `dim`.
        """
        super().__init__()
        if group_size < PER_WORD or group_size % PER_WORD:
            raise ValueError(f"group_size is a positive multiple of {PER_WORD}, got {group_size}")
        if dim not in (-1, 0, 1):
            raise ValueError(f"dim is 0, 1 or -1, got {dim}")
        self.out_features = out_features
        self.bias = bias
        self.replica_grouping = replica_grouping
        self.group_size = group_size
        self.dim = dim

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """From `(..., in_features)` to `(..., out_features)`.

        Raises:
            ValueError: where `group_size` does not divide the dimension.
        """
        y = x @ self._weight(x.shape[-1], x.dtype)
        if not self.bias:
            return y
        return y + self._zeros("bias", (self.out_features,), x.dtype)

    def _weight(self, in_features: int, dtype: popxl.dtypes.dtype) -> popxl.Tensor:
        rows, columns = in_features, self.out_features
        if self.dim == 0:
            rows, columns = columns, rows
        if columns % self.group_size:
            raise ValueError(
                f"group_size {self.group_size} does not divide dimension {self.dim} of the weight, "
                f"which is {columns}"
            )
        words, scale = shapes(rows, columns, self.group_size)
        return group_quantize_decompress(
            self._zeros("weight_compressed", words, popxl.uint16, np.uint16),
            self._zeros("weight_decompression_scale", scale, dtype),
            self._zeros("weight_decompression_bias", scale, dtype),
            self.dim,
        )

    def _zeros(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: popxl.dtypes.dtype,
        host_dtype: type = np.float32,
    ) -> popxl.Tensor:
        data = full(shape, 0, host_dtype)
        return self.add_variable_input(name, data, dtype, replica_grouping=self.replica_grouping)

    @staticmethod
    def torch_mapping(
        variables: NamedTensors,
        nn_layer: Any,
        dtype: popxl.dtypes.dtype = popxl.float32,
        group_size: int = 64,
        dim: int = -1,
    ) -> WeightsDict:
        """The variables' values for a `torch.nn.Linear`, whose weight is compressed here."""
        weight = to_numpy(nn_layer.weight.data, popxl.float32).T  # [in_features, out_features]
        packed, scale, minimum = group_quantize_compress_numpy(weight, group_size, dim)
        weights = {
            variables.weight_compressed: packed,
            variables.weight_decompression_scale: to_numpy(scale, dtype),
            variables.weight_decompression_bias: to_numpy(minimum, dtype),
        }
        if "bias" in variables.keys():  # noqa: SIM118 - a tree, not a dictionary
            weights[variables.bias] = to_numpy(nn_layer.bias.data, dtype)
        return WeightsDict(weights)
