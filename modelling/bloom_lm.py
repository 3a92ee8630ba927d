"""The language model: the model and the head, whose weight is the embedding's."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops

from config import BloomConfig
from modelling.bloom_model import BloomModelTP2D
from modelling.embedding import first_row, first_row_mapping, shard_vocabulary
from modelling.layer_norm import LayerNormTP2D
from modelling.sharding import all_reduce, axis_size, blank, every_replica_its_own


class BloomLMHeadTP2D(addons.Module):
    """The last layer norm and the scores of every token of the vocabulary.

    `weight` is the embedding's table: bind that tensor to it, or give it to `build`.
    """

    def __init__(self, config: BloomConfig):
        super().__init__()
        self.config = config
        self.ln_f = LayerNormTP2D(config)

    def build(self, x: popxl.Tensor, weight: popxl.Tensor | None = None) -> popxl.Tensor:
        """From `(tokens, hidden_size / tp2)` to float32 logits, `(tokens, vocabulary / tp1)`.

        Args:
            weight: `(vocabulary / tp1, hidden_size / tp2)`; an input of its own where None.
        """
        if weight is None:
            rows = self.config.padded_vocab_size // axis_size(self.config, "tp1")
            shape = (rows, x.shape[-1])
            weight = self.add_variable_input(
                "weight", blank(shape, x.dtype), x.dtype, replica_grouping=every_replica_its_own()
            )
        logits = all_reduce(self.config, self.ln_f(x) @ ops.transpose(weight), "tp2")
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
        if "weight" in variables.keys():  # noqa: SIM118 - a tree, not a dictionary
            mapping[variables.weight] = shard_vocabulary(config, hf_module.lm_head.weight)
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
