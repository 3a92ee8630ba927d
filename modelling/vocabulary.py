"""Token embedding and its norm; the vocabulary is split over tp1, the hidden size over tp2."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons

from config import BloomConfig
from modelling.layer_norm import LayerNormTP2D
from modelling.sharding import (
    all_reduce,
    axis_size,
    blank,
    group_over,
)
from modelling.weight import Weight, weight_of


class BloomEmbeddingTP2D(addons.Module):
    """The rows of a table; every replica looks up the tokens of its part of the vocabulary.

    Attributes:
        table: the tensors of the weight in the graph built last, for a head that is tied to it.
    """

    def __init__(self, config: BloomConfig):
        super().__init__()
        self.config = config
        self.norm = LayerNormTP2D(config)
        self.table: tuple[popxl.Tensor, ...]

    def build(self, tokens: popxl.Tensor) -> popxl.Tensor:
        """From token ids, int32 `(tokens,)`, to `(tokens, hidden_size / tp2)`."""
        weight = vocabulary_weight(self.config)
        self.table = add_vocabulary(self, self.config)
        if axis_size(self.config, "tp1") == 1:
            return self.norm(weight.rows_at(tokens, self.table))
        here = tokens - first_row(self, self.config)
        found = weight.rows_at(here, self.table, zero_outside=True)
        return self.norm(all_reduce(self.config, found, "tp1"))

    @staticmethod
    def hf_mapping(
        config: BloomConfig, variables: addons.NamedTensors, hf_module: Any
    ) -> dict[popxl.Variable, np.ndarray]:
        """`word_embeddings` and `word_embeddings_layernorm` of a transformers `BloomModel`."""
        norm = hf_module.word_embeddings_layernorm
        return {
            **vocabulary_mapping(config, variables, hf_module.word_embeddings.weight),
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


def vocabulary_weight(config: BloomConfig) -> Weight:
    """The weight of embedding and head: `(vocab_size, hidden_size)`, a row for each token."""
    return weight_of(config, rows="tp1", table=True)


def add_vocabulary(module: addons.Module, config: BloomConfig) -> tuple[popxl.Tensor, ...]:
    """Inputs of `module` for the weight of embedding or head."""
    rows = config.padded_vocab_size // axis_size(config, "tp1")
    width = config.model.hidden_size // axis_size(config, "tp2")
    return vocabulary_weight(config).add_to(module, rows, width)


def vocabulary_mapping(
    config: BloomConfig, variables: addons.NamedTensors, weight: Any
) -> dict[popxl.Variable, np.ndarray]:
    """The values of a module's `add_vocabulary`; rows of zeros fill it up to a multiple of tp1."""
    values = vocabulary_weight(config).values(weight, height=config.padded_vocab_size)
    return {variables.get(name): value for name, value in values.items()}
