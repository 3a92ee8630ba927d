"""Token embedding and its norm; the vocabulary is split over tp1, the hidden size over tp2."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops

from config import BloomConfig
from modelling.layer_norm import LayerNormTP2D
from modelling.sharding import (
    all_reduce,
    axis_size,
    blank,
    every_replica_its_own,
    group_over,
    shard_matrix,
)


class BloomEmbeddingTP2D(addons.Module):
    """The rows of a table; every replica looks up the tokens of its part of the vocabulary.

    Attributes:
        table: the tensor of the weight in the graph built last, for a head that is tied to it.
    """

    def __init__(self, config: BloomConfig):
        super().__init__()
        self.config = config
        self.norm = LayerNormTP2D(config)
        self.table: popxl.Tensor

    def build(self, tokens: popxl.Tensor) -> popxl.Tensor:
        """From token ids, int32 `(tokens,)`, to `(tokens, hidden_size / tp2)`."""
        model, dtype = self.config.model, self.config.model.dtype
        rows = self.config.padded_vocab_size // axis_size(self.config, "tp1")
        shape = (rows, model.hidden_size // axis_size(self.config, "tp2"))
        weight = self.add_variable_input(
            "weight", blank(shape, dtype), dtype, replica_grouping=every_replica_its_own()
        )
        self.table = weight
        if axis_size(self.config, "tp1") == 1:
            return self.norm(ops.gather(weight, tokens))
        found = ops.gather(weight, tokens - first_row(self, self.config), zero_OOR=True)
        return self.norm(all_reduce(self.config, found, "tp1"))

    @staticmethod
    def hf_mapping(
        config: BloomConfig, variables: addons.NamedTensors, hf_module: Any
    ) -> dict[popxl.Variable, np.ndarray]:
        """`word_embeddings` and `word_embeddings_layernorm` of a transformers `BloomModel`."""
        weight = shard_vocabulary(config, hf_module.word_embeddings.weight)
        norm = hf_module.word_embeddings_layernorm
        return {
            variables.weight: weight,
            **first_row_mapping(config, variables),
            **LayerNormTP2D.hf_mapping(config, variables.norm, norm),
        }


def first_row(module: addons.Module, config: BloomConfig) -> popxl.Tensor:
    """An input of `module`: the token id of the first row of the replica's part, int32 scalar."""
    return module.add_variable_input(
        "first_row",
        blank((), popxl.int32),
        popxl.int32,
        replica_grouping=group_over(config, "tp2"),
    )


def first_row_mapping(
    config: BloomConfig, variables: addons.NamedTensors
) -> dict[popxl.Variable, np.ndarray]:
    """The values of `first_row` where the module has it."""
    if "first_row" not in variables.keys():  # noqa: SIM118 - a tree, not a dictionary
        return {}
    parts = axis_size(config, "tp1")
    starts = np.arange(parts, dtype=np.int32) * (config.padded_vocab_size // parts)
    return {variables.first_row: starts[0] if parts == 1 else starts}


def shard_vocabulary(config: BloomConfig, weight: Any) -> np.ndarray:
    """`(vocab_size, hidden_size)`, filled up with zeros to a multiple of tp1, and sharded."""
    return shard_matrix(config, weight, rows="tp1", height=config.padded_vocab_size)
