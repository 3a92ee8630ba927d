"""BLOOM's embedding: a token's row of the table, and a norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons

from config import BloomConfig
from modelling.layer_norm import LayerNormTP2D
from modelling.vocabulary import embedded, embedded_mapping


class BloomEmbeddingTP2D(addons.Module):
    """Where a token stands makes no difference here: ALiBi sees to it in the attention."""

    def __init__(self, config: BloomConfig):
        super().__init__()
        self.config = config
        self.norm = LayerNormTP2D(config)

    def build(self, tokens: popxl.Tensor, position: popxl.Tensor) -> popxl.Tensor:
        """From token ids, int32 `(tokens,)`, to `(tokens, hidden_size / tp2)`."""
        return self.norm(embedded(self, self.config, tokens))

    @staticmethod
    def hf_mapping(
        config: BloomConfig, variables: addons.NamedTensors, hf_module: Any
    ) -> dict[popxl.Variable, np.ndarray]:
        """`word_embeddings` and `word_embeddings_layernorm` of a transformers `BloomModel`."""
        norm = hf_module.word_embeddings_layernorm
        return {
            **embedded_mapping(config, variables, hf_module.word_embeddings.weight),
            **LayerNormTP2D.hf_mapping(config, variables.norm, norm),
        }
