"""The language model: the model and the head, whose weight is the embedding's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops

from config import BloomConfig
from modelling.bloom_model import BloomModelTP2D
from modelling.embedding import (
    add_vocabulary,
    first_row,
    first_row_mapping,
    vocabulary_mapping,
    vocabulary_weight,
)
from modelling.layer_norm import LayerNormTP2D
from modelling.sharding import all_reduce


class BloomLMHeadTP2D(addons.Module):
    """The last layer norm and the scores of every token of the vocabulary.

    Its weight is the embedding's table: bind those tensors to it, or give them to `build`.
    """

    def __init__(self, config: BloomConfig):
        super().__init__()
        self.config = config
        self.ln_f = LayerNormTP2D(config)

    def build(self, x: popxl.Tensor, table: Sequence[popxl.Tensor] | None = None) -> popxl.Tensor:
        """From `(tokens, hidden_size / tp2)` to float32 logits, `(tokens, vocabulary / tp1)`.

        Args:
            table: the tensors of the embedding's weight; inputs of its own where None.
        """
        if table is None:
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
        """`transformer.ln_f` and `lm_head` of a transformers `BloomForCausalLM`."""
        norm = hf_module.transformer.ln_f
        mapping = {
            **LayerNormTP2D.hf_mapping(config, variables.ln_f, norm),
            **first_row_mapping(config, variables),
        }
        own = vocabulary_weight(config).names[0] in variables.keys()  # noqa: SIM118 - a tree
        if own:
            mapping |= vocabulary_mapping(config, variables, hf_module.lm_head.weight)
        return mapping


class BloomLMHeadModelTP2D(addons.Module):
    """Model and tied head: from token ids to logits."""

    def __init__(self, config: BloomConfig):
        super().__init__()
        self.config = config
        self.transformer = BloomModelTP2D(config)
        self.lm_head = BloomLMHeadTP2D(config)

    def build(
        self,
        tokens: popxl.Tensor,
        key_caches: list[popxl.TensorByRef] | None = None,
        value_caches: list[popxl.TensorByRef] | None = None,
        position: popxl.Tensor | None = None,
        row: popxl.Tensor | None = None,
    ) -> popxl.Tensor:
        """From int32 `(tokens,)` to float32 logits, `(tokens, vocabulary / tp1)`."""
        x = self.transformer(tokens, key_caches, value_caches, position, row)
        if not self.config.model.tie_word_embeddings:
            return self.lm_head(x)
        return self.lm_head(x, self.transformer.embeddings.table)

    @staticmethod
    def hf_mapping(
        config: BloomConfig, variables: addons.NamedTensors, hf_module: Any
    ) -> dict[popxl.Variable, np.ndarray]:
        """The weights of a transformers `BloomForCausalLM`."""
        transformer = hf_module.transformer
        return {
            **BloomModelTP2D.hf_mapping(config, variables.transformer, transformer),
            **BloomLMHeadTP2D.hf_mapping(config, variables.lm_head, hf_module),
        }
