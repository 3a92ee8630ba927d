"""One decoder block: attention and feed-forward, each behind a layer norm and around a shortcut."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons

from config import BloomConfig
from modelling.attention import SelfAttentionTP2D
from modelling.feed_forward import FeedForwardTP2D
from modelling.layer_norm import LayerNormTP2D


class BloomDecoderBlockTP2D(addons.Module):
    """`h = x + attention(norm(x))`, then `h + feed_forward(norm(h))`.

    With `residual_after_norm` the norms stand before the sums, too: `norm(x) + attention(norm(x))`.
    """

    def __init__(self, config: BloomConfig):
        super().__init__()
        self.residual_after_norm = config.model.residual_after_norm
        self.ln_1 = LayerNormTP2D(config)
        self.attention = SelfAttentionTP2D(config, alibi=True)
        self.ln_2 = LayerNormTP2D(config)
        self.feed_forward = FeedForwardTP2D(config)

    def build(
        self,
        x: popxl.Tensor,
        key_cache: popxl.TensorByRef,
        value_cache: popxl.TensorByRef,
        position: popxl.Tensor,
        row: popxl.Tensor | None = None,
    ) -> popxl.Tensor:
        """From `(tokens, hidden_size / tp2)` to the same; the rest as for the attention."""
        normed = self.ln_1(x)
        shortcut = normed if self.residual_after_norm else x
        x = shortcut + self.attention(normed, key_cache, value_cache, position, row)
        normed = self.ln_2(x)
        return (normed if self.residual_after_norm else x) + self.feed_forward(normed)

    @staticmethod
    def hf_mapping(
        config: BloomConfig, variables: addons.NamedTensors, hf_module: Any
    ) -> dict[popxl.Variable, np.ndarray]:
        """The weights of a transformers `BloomBlock`."""
        attention, mlp = hf_module.self_attention, hf_module.mlp
        return {
            **LayerNormTP2D.hf_mapping(config, variables.ln_1, hf_module.input_layernorm),
            **SelfAttentionTP2D.hf_mapping(
                config, variables.attention, attention.query_key_value, attention.dense
            ),
            **LayerNormTP2D.hf_mapping(config, variables.ln_2, hf_module.post_attention_layernorm),
            **FeedForwardTP2D.hf_mapping(
                config, variables.feed_forward, mlp.dense_h_to_4h, mlp.dense_4h_to_h
            ),
        }
