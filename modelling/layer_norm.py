"""Layer norm over a hidden dimension that is split over tp2."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons

from config import BloomConfig
from modelling.sharding import along, axis_size, host_array, shard_vector


class LayerNormTP2D(addons.Module):
    """Layer norm with the configuration's epsilon."""

    def __init__(self, config: BloomConfig):
        super().__init__()
        self.config = config
        self.norm: addons.Module
        if axis_size(config, "tp2") > 1:
            self.norm = addons.layers.LayerNormDistributed(along(config, "tp2"))
        else:
            self.norm = addons.layers.LayerNorm()

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """From `(tokens, hidden_size / tp2)` to the same."""
        return self.norm(x, self.config.model.layer_norm_epsilon)

    @staticmethod
    def hf_mapping(
        config: BloomConfig, variables: addons.NamedTensors, hf_module: Any
    ) -> dict[popxl.Variable, np.ndarray]:
        """Weight and bias of a `torch.nn.LayerNorm`."""
        return {
            variables.norm.weight: shard_vector(
                config, host_array(config, hf_module.weight), "tp2"
            ),
            variables.norm.bias: shard_vector(config, host_array(config, hf_module.bias), "tp2"),
        }
