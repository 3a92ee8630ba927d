"""The feed-forward network; its inner dimension is split over tp1."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops

from config import BloomConfig
from modelling.linear import LinearTP2D


class FeedForwardTP2D(addons.Module):
    """Four times wider, GELU by its approximation with tanh, and back."""

    def __init__(self, config: BloomConfig):
        super().__init__()
        self.widen = LinearTP2D(config, 4 * config.model.hidden_size, contract="tp2")
        self.narrow = LinearTP2D(config, config.model.hidden_size, contract="tp1")

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """From `(tokens, hidden_size / tp2)` to the same."""
        return self.narrow(ops.gelu(self.widen(x)))

    @staticmethod
    def hf_mapping(
        config: BloomConfig, variables: addons.NamedTensors, widen: Any, narrow: Any
    ) -> dict[popxl.Variable, np.ndarray]:
        """The weights of its two linear layers, read like `torch.nn.Linear`s."""
        return {
            **LinearTP2D.hf_mapping(config, variables.widen, widen, "tp2"),
            **LinearTP2D.hf_mapping(config, variables.narrow, narrow, "tp1"),
        }
