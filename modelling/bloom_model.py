"""The model without its head: embedding and decoder blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons

from config import BloomConfig
from modelling.decoder import BloomDecoderBlockTP2D
from modelling.embedding import BloomEmbeddingTP2D


class BloomModelTP2D(addons.Module):
    """From token ids to the last block's result; one graph, called once a block."""

    def __init__(self, config: BloomConfig):
        super().__init__()
        self.config = config
        self.embeddings = BloomEmbeddingTP2D(config)

    def build(
        self,
        tokens: popxl.Tensor,
        key_caches: list[popxl.TensorByRef] | None = None,
        value_caches: list[popxl.TensorByRef] | None = None,
        position: popxl.Tensor | None = None,
        row: popxl.Tensor | None = None,
    ) -> popxl.Tensor:
        """From int32 `(tokens,)` to `(tokens, hidden_size / tp2)`.

        Args:
            key_caches, value_caches: one a block; these and the rest as for the attention.
        """
        x = self.embeddings(tokens)
        caches: list[tuple] = list(zip(key_caches or [], value_caches or [], strict=True))
        caches = caches or [(None, None)] * self.config.model.layers
        block = BloomDecoderBlockTP2D(self.config)
        factories, graph = block.create_graph(x, *caches[0], position, row)
        for number, cache in enumerate(caches):
            given = [t for t in (*cache, position, row) if t is not None]
            (x,) = graph.bind(self.add_variable_inputs(f"layer_{number}", factories)).call(
                x, *given
            )
        return x

    @staticmethod
    def hf_mapping(
        config: BloomConfig, variables: addons.NamedTensors, hf_module: Any
    ) -> dict[popxl.Variable, np.ndarray]:
        """The weights of a transformers `BloomModel`; its last norm is the head's."""
        mapping = BloomEmbeddingTP2D.hf_mapping(config, variables.embeddings, hf_module)
        for number in range(config.model.layers):
            of_block = variables.get(f"layer_{number}")
            mapping |= BloomDecoderBlockTP2D.hf_mapping(config, of_block, hf_module.h[number])
        return mapping
