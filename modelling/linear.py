"""A linear layer whose input lies over one axis of parallelism and whose output over the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons

from config import BloomConfig
from modelling.sharding import (
    Axis,
    all_reduce,
    axis_size,
    blank,
    every_replica_its_own,
    group_over,
    host_array,
    shard_matrix,
    shard_vector,
)


class LinearTP2D(addons.Module):
    """`x @ weight`, summed over the axis that the input is split over, plus `bias`.

    Args:
        out_features: of the whole layer; a multiple of the size of the axis it is split over.
        contract: the axis that the input is split over, and the sum runs over.
    """

    def __init__(self, config: BloomConfig, out_features: int, contract: Axis):
        super().__init__()
        self.config, self.contract = config, contract
        self.output_axis: Axis = "tp2" if contract == "tp1" else "tp1"
        self.out_features = out_features // axis_size(config, self.output_axis)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """From `(tokens, in_features / parts)` to `(tokens, out_features / parts)`."""
        shape = (x.shape[-1], self.out_features)
        weight = self.add_variable_input(
            "weight", blank(shape, x.dtype), x.dtype, replica_grouping=every_replica_its_own()
        )
        bias = self.add_variable_input(
            "bias",
            blank(shape[1:], x.dtype),
            x.dtype,
            replica_grouping=group_over(self.config, self.contract),
        )
        return all_reduce(self.config, x @ weight, self.contract) + bias

    @staticmethod
    def hf_mapping(
        config: BloomConfig, variables: addons.NamedTensors, hf_module: Any, contract: Axis
    ) -> dict[popxl.Variable, np.ndarray]:
        """Weight and bias of a `torch.nn.Linear`.

        PopXL's weight is `(in, out)`, torch's `(out, in)`: the bytes stay as torch has them, only
        the axes are swapped. That is the fast order for one-token matmuls.
        """
        output_axis: Axis = "tp2" if contract == "tp1" else "tp1"
        weight = shard_matrix(config, hf_module.weight, rows=output_axis)
        return {
            variables.weight: weight.swapaxes(-1, -2),
            variables.bias: shard_vector(config, host_array(config, hf_module.bias), output_axis),
        }
