"""The head of a language model; a tied one has the embedding's weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops

from config import BloomConfig
from modelling.layer_norm import LayerNormTP2D
from modelling.sharding import all_reduce
from modelling.vocabulary import (
    add_vocabulary,
    first_row,
    first_row_mapping,
    vocabulary_mapping,
    vocabulary_weight,
)


class LMHeadTP2D(addons.Module):
    """The last layer norm and the scores of every token of the vocabulary.

    A head that is tied to the embedding has the same inputs: bind the table's tensors to them.
    """

    def __init__(self, config: BloomConfig):
        super().__init__()
        self.config = config
        self.ln_f = LayerNormTP2D(config)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """From `(tokens, hidden_size / tp2)` to float32 logits, `(tokens, vocabulary / tp1)`."""
        table = add_vocabulary(self, self.config)
        scores = vocabulary_weight(self.config).matmul(self.ln_f(x), table)
        logits = all_reduce(self.config, scores, "tp2")
        return self._without_padding(ops.cast(logits, popxl.float32))

    def _without_padding(self, logits: popxl.Tensor) -> popxl.Tensor:
        """Rows that only fill the vocabulary up to a multiple of tp1 never win."""
        vocab_size = self.config.model.vocab_size
        if self.config.padded_vocab_size == vocab_size:
            return logits
        rows = popxl.constant(np.arange(logits.shape[1], dtype=np.int32))
        is_padding = ops.greater(rows + first_row(self, self.config), vocab_size - 1)
        return ops.where(is_padding, float(np.finfo(np.float32).min), logits)

    @staticmethod
    def hf_mapping(
        config: BloomConfig, variables: addons.NamedTensors, hf_module: Any
    ) -> dict[popxl.Variable, np.ndarray]:
        """`transformer.ln_f` and `lm_head` of the checkpoint."""
        norm = hf_module.transformer.ln_f
        mapping = {
            **LayerNormTP2D.hf_mapping(config, variables.ln_f, norm),
            **first_row_mapping(config, variables),
        }
        own = vocabulary_weight(config).names[0] in variables.keys()  # noqa: SIM118 - a tree
        if own:
            mapping |= vocabulary_mapping(config, variables, hf_module.lm_head.weight)
        return mapping
