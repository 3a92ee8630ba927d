"""A matmul with a weight, and a bias."""

from __future__ import annotations

from typing import Any

import popxl
from popxl.utils import to_numpy

from ..initialisers import full, truncated_normal
from ..module import Module
from ..named_tensors import NamedTensors
from ..utils import WeightsDict


class Linear(Module):
    """`x @ weight + bias`, with the weight as `(in_features, out_features)`."""

    def __init__(
        self,
        out_features: int,
        bias: bool = True,
        replica_grouping: popxl.ReplicaGrouping | None = None,
    ):
        """
        Args:
            replica_grouping: of weight and bias; groups hold different shards of them.
        """
        super().__init__()
        self.out_features = out_features
        self.bias = bias
        self.replica_grouping = replica_grouping

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """From `(..., in_features)` to `(..., out_features)`."""
        shape = (x.shape[-1], self.out_features)
        grouping = self.replica_grouping
        weight = self.add_variable_input(
            "weight", truncated_normal(shape), x.dtype, replica_grouping=grouping
        )
        y = x @ weight
        if not self.bias:
            return y
        bias = self.add_variable_input(
            "bias", full((self.out_features,), 0), x.dtype, replica_grouping=grouping
        )
        return y + bias

    @staticmethod
    def torch_mapping(
        variables: NamedTensors, nn_layer: Any, dtype: popxl.dtypes.dtype = popxl.float32
    ) -> WeightsDict:
        """The variables' values in a `torch.nn.Linear`, whose weight lies the other way round."""
        weights = {variables.weight: to_numpy(nn_layer.weight.data, dtype).T}
        if "bias" in variables.keys():  # noqa: SIM118 - a tree, not a dictionary
            weights[variables.bias] = to_numpy(nn_layer.bias.data, dtype)
        return WeightsDict(weights)
