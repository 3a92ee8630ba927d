"""One decoder block: attention and feed-forward, each behind a layer norm and around a shortcut."""

from __future__ import annotations

from typing import ClassVar

import popxl
import popxl_addons as addons

from config import BloomConfig
from modelling.attention import SelfAttentionTP2D
from modelling.feed_forward import FeedForwardTP2D
from modelling.layer_norm import LayerNormTP2D


class DecoderBlockTP2D(addons.Module):
    """`h = x + attention(norm(x))`, then `h + feed_forward(norm(h))`.

    With `residual_after_norm` the norms stand before the sums, too: `norm(x) + attention(norm(x))`.
    A model's own block adds the mapping of its weights, and says whether there is ALiBi.
    """

    alibi: ClassVar[bool]

    def __init__(self, config: BloomConfig):
        super().__init__()
        self.residual_after_norm = config.model.residual_after_norm
        self.ln_1 = LayerNormTP2D(config)
        self.attention = SelfAttentionTP2D(config, self.alibi)
        self.ln_2 = LayerNormTP2D(config)
        self.feed_forward = FeedForwardTP2D(config)

    def build(
        self,
        x: popxl.Tensor,
        key_cache: popxl.TensorByRef,
        value_cache: popxl.TensorByRef,
        position: popxl.Tensor,
        row: popxl.Tensor,
    ) -> popxl.Tensor:
        """From `(tokens, hidden_size / tp2)` to the same; the rest as for the attention."""
        normed = self.ln_1(x)
        shortcut = normed if self.residual_after_norm else x
        x = shortcut + self.attention(normed, key_cache, value_cache, position, row)
        normed = self.ln_2(x)
        return (normed if self.residual_after_norm else x) + self.feed_forward(normed)
