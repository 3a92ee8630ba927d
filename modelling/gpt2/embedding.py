"""GPT-2's embedding: a token's row of one table, and its position's row of another."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops

from config import BloomConfig
from modelling.sharding import axis_size, blank, host_array, split_over
from modelling.vocabulary import embedded, embedded_mapping


class GPT2EmbeddingTP2D(addons.Module):
    """The sum of both rows. The table of positions is split over tp2 alone."""

    def __init__(self, config: BloomConfig):
        super().__init__()
        self.config = config

    def build(self, tokens: popxl.Tensor, position: popxl.Tensor) -> popxl.Tensor:
        """From token ids, int32 `(tokens,)`, to `(tokens, hidden_size / tp2)`.

        Args:
            position: int32: that of the first token, a scalar, or of each, `(tokens,)`.
        """
        if not position.rank:
            position = position + popxl.constant(np.arange(tokens.shape[0], dtype=np.int32))
        model = self.config.model
        shape = (model.sequence_length, model.hidden_size // axis_size(self.config, "tp2"))
        table = self.add_variable_input(
            "positions",
            blank(shape, model.dtype),
            model.dtype,
            replica_grouping=split_over(self.config, "tp2"),
        )
        return embedded(self, self.config, tokens) + ops.gather(table, position)

    @staticmethod
    def hf_mapping(
        config: BloomConfig, variables: addons.NamedTensors, hf_module: Any
    ) -> dict[popxl.Variable, np.ndarray]:
        """`wte` and `wpe` of a transformers `GPT2Model`."""
        positions, parts = host_array(config, hf_module.wpe.weight), axis_size(config, "tp2")
        if parts > 1:
            positions = np.stack(np.split(positions, parts, axis=1))
        return {
            **embedded_mapping(config, variables, hf_module.wte.weight),
            variables.positions: positions,
        }
