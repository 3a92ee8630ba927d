"""One decoder block: attention and feed-forward, each behind a layer norm and around a shortcut."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons

from config import BloomConfig
from modelling.attention import SelfAttentionTP2D
from modelling.decoder import DecoderBlockTP2D
from modelling.feed_forward import FeedForwardTP2D
from modelling.layer_norm import LayerNormTP2D


class BloomDecoderBlockTP2D(DecoderBlockTP2D):
    """A block whose attention has ALiBi."""

    alibi = True

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
