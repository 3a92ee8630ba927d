"""Layer norm over a whole last dimension."""

from __future__ import annotations

from typing import Any

import popxl
from popxl import ops
from popxl.utils import to_numpy

from ..initialisers import full
from ..module import Module
from ..named_tensors import NamedTensors
from ..utils import WeightsDict


class LayerNorm(Module):
    """Normalises the last dimension, then scales and shifts it by `weight` and `bias`."""

    def build(self, x: popxl.Tensor, eps: float = 1e-05) -> popxl.Tensor:
        """From `(..., hidden_size)` to the same; `eps` is added to the variance."""
        size = x.shape[-1]
        weight = self.add_variable_input("weight", full((size,), 1), x.dtype)
        bias = self.add_variable_input("bias", full((size,), 0), x.dtype)
        if len(x.shape) == 2:
            return ops.layer_norm(x, weight, bias, eps)
        # Of more dimensions the op takes statistics over all but the first.
        return ops.layer_norm(x.reshape((-1, size)), weight, bias, eps).reshape(x.shape)

    @staticmethod
    def torch_mapping(
        variables: NamedTensors, nn_layer: Any, dtype: popxl.dtypes.dtype = popxl.float32
    ) -> WeightsDict:
        """The variables' values in a torch norm: over one dimension or several, or of groups."""
        return WeightsDict(
            {
                variables.weight: to_numpy(nn_layer.weight.data, dtype).reshape(-1),
                variables.bias: to_numpy(nn_layer.bias.data, dtype).reshape(-1),
            }
        )
