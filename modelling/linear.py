"""A linear layer whose input is split over one axis of parallelism, its output over the other."""

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
    host_array,
    other,
    shard_vector,
    split_over,
)
from modelling.weight import weight_of


class LinearTP2D(addons.Module):
    """`x @ weight`, summed over the axis that the input is split over, plus `bias`.

    Args:
        out_features: of the whole layer; a multiple of the size of the axis it is split over.
        contract: the axis that the input is split over, and the sum runs over.
    """

    def __init__(self, config: BloomConfig, out_features: int, contract: Axis):
        super().__init__()
        self.config, self.contract = config, contract
        self.output_axis = other(contract)
        self.out_features = out_features // axis_size(config, self.output_axis)
        self.weight = weight_of(config, rows=self.output_axis)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """From `(tokens, in_features / parts)` to `(tokens, out_features / parts)`."""
        weight = self.weight.add_to(self, self.out_features, x.shape[-1])
        bias = self.add_variable_input(
            "bias",
            blank((self.out_features,), x.dtype),
            x.dtype,
            replica_grouping=split_over(self.config, self.output_axis),
        )
        return all_reduce(self.config, self.weight.matmul(x, weight), self.contract) + bias

    @staticmethod
    def hf_mapping(
        config: BloomConfig, variables: addons.NamedTensors, hf_module: Any, contract: Axis
    ) -> dict[popxl.Variable, np.ndarray]:
        """Weight and bias of a `torch.nn.Linear`."""
        output_axis = other(contract)
        weight = weight_of(config, rows=output_axis).values(hf_module.weight)
        bias = shard_vector(config, host_array(config, hf_module.bias), output_axis)
        return {
            **{variables.get(name): value for name, value in weight.items()},
            variables.bias: bias,
        }
