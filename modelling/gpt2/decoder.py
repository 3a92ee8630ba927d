"""GPT-2's decoder block, and its linear layers as the shared builders expect them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import popxl
import popxl_addons as addons

from config import BloomConfig
from modelling.attention import SelfAttentionTP2D
from modelling.decoder import DecoderBlockTP2D
from modelling.feed_forward import FeedForwardTP2D
from modelling.layer_norm import LayerNormTP2D

if TYPE_CHECKING:
    import torch


class GPT2DecoderBlockTP2D(DecoderBlockTP2D):
    """A block whose attention has no bias: positions are in the embedding."""

    alibi = False

    @staticmethod
    def hf_mapping(
        config: BloomConfig, variables: addons.NamedTensors, hf_module: Any
    ) -> dict[popxl.Variable, np.ndarray]:
        """The weights of a transformers `GPT2Block`."""
        attn, mlp = hf_module.attn, hf_module.mlp
        qkv = by_head(linear(attn.c_attn), config.model.heads)
        return {
            **LayerNormTP2D.hf_mapping(config, variables.ln_1, hf_module.ln_1),
            **SelfAttentionTP2D.hf_mapping(config, variables.attention, qkv, linear(attn.c_proj)),
            **LayerNormTP2D.hf_mapping(config, variables.ln_2, hf_module.ln_2),
            **FeedForwardTP2D.hf_mapping(
                config, variables.feed_forward, linear(mlp.c_fc), linear(mlp.c_proj)
            ),
        }


@dataclass(frozen=True)
class Linear:
    """A layer read like a `torch.nn.Linear`: weight `(out, in)` and bias `(out,)`."""

    weight: torch.Tensor
    bias: torch.Tensor


def linear(conv: Any) -> Linear:
    """A transformers `Conv1D`, whose weight is `(in, out)`."""
    return Linear(conv.weight.detach()[:].T.contiguous(), conv.bias)


def by_head(qkv: Linear, heads: int) -> Linear:
    """All queries, all keys, all values become each head's query, key and value in turn."""

    def reordered(t: torch.Tensor) -> torch.Tensor:  # (3 * heads * head_dim, ...)
        split = t.detach()[:].reshape(3, heads, -1, *t.shape[1:])
        return split.transpose(0, 1).reshape(t.shape)

    return Linear(reordered(qkv.weight), reordered(qkv.bias))
