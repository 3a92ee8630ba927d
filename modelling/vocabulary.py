"""The table of embedding and head: the vocabulary is split over tp1, the hidden size over tp2.

Every replica has the rows of its part of the vocabulary, and looks up the tokens among them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons

from config import BloomConfig
from modelling.sharding import (
    all_reduce,
    axis_size,
    blank,
    split_over,
)
from modelling.weight import Weight, weight_of


def embedded(module: addons.Module, config: BloomConfig, tokens: popxl.Tensor) -> popxl.Tensor:
    """The rows of the table, which becomes inputs of `module`.

    From token ids, int32 `(tokens,)`, to `(tokens, hidden_size / tp2)`.
    """
    weight, table = vocabulary_weight(config), add_vocabulary(module, config)
    if axis_size(config, "tp1") == 1:
        return weight.rows_at(tokens, table)
    here = tokens - first_row(module, config)
    return all_reduce(config, weight.rows_at(here, table, zero_outside=True), "tp1")


def embedded_mapping(
    config: BloomConfig, variables: addons.NamedTensors, weight: Any
) -> dict[popxl.Variable, np.ndarray]:
    """The values of the inputs that `embedded` adds."""
    return {
        **vocabulary_mapping(config, variables, weight),
        **first_row_mapping(config, variables),
    }


def first_row(module: addons.Module, config: BloomConfig) -> popxl.Tensor:
    """An input of `module`: the token id of the first row of the replica's part, int32 scalar."""
    return module.add_variable_input(
        "first_row",
        blank((), popxl.int32),
        popxl.int32,
        replica_grouping=split_over(config, "tp1"),
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
