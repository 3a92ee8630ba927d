"""Self-attention with ALiBi; heads are split over tp1, the hidden dimension over tp2."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops

from config import BloomConfig
from modelling.alibi import alibi_slopes
from modelling.cached_attention import (
    causal_attention,
    prompt_attention,
    token_attention,
    verify_attention,
)
from modelling.linear import LinearTP2D
from modelling.sharding import axis_size, blank, group_over, shard_vector


class BloomSelfAttentionTP2D(addons.Module):
    """Query, key and value projections, attention, and the projection of its result."""

    def __init__(self, config: BloomConfig):
        super().__init__()
        self.config = config
        hidden_size = config.model.hidden_size
        self.qkv = LinearTP2D(config, 3 * hidden_size, contract="tp2")
        self.dense = LinearTP2D(config, hidden_size, contract="tp1")
        self.heads = config.model.heads // axis_size(config, "tp1")

    def build(
        self,
        x: popxl.Tensor,
        key_cache: popxl.TensorByRef | None = None,
        value_cache: popxl.TensorByRef | None = None,
        position: popxl.Tensor | None = None,
        row: popxl.Tensor | None = None,
    ) -> popxl.Tensor:
        """From `(tokens, hidden_size / tp2)` to the same.

        Args:
            key_cache, value_cache: `(batch_size, heads / tp1, sequence_length, head_dim)`, written
                to in place. Without them the tokens are a whole sequence.
            position: int32; where the first token stands, or where each of them does, `(tokens,)`.
            row: int32 scalar: the row of the cache that all tokens belong to. Without it they are
                one of each row.
        """
        slopes = self.add_variable_input(
            "alibi_slopes",
            blank((self.heads,), popxl.float32),
            popxl.float32,
            replica_grouping=group_over(self.config, "tp2"),
        )
        q, k, v = self._split_heads(self.qkv(x))
        if key_cache is None:
            context = causal_attention(q, k, v, slopes)
        else:
            context = self._cached(q, k, v, key_cache, value_cache, slopes, position, row)
        return self.dense(ops.reshape(context, (x.shape[0], -1)))

    def _split_heads(self, fused: popxl.Tensor) -> list[popxl.Tensor]:
        """`(tokens, heads * 3 * head_dim)`, BLOOM's order, as three `(tokens, heads, head_dim)`."""
        shape = (fused.shape[0], self.heads, 3, self.config.model.head_dim)
        return [ops.squeeze(t, [2]) for t in ops.split(ops.reshape(fused, shape), 3, axis=2)]

    def _cached(self, q, k, v, key_cache, value_cache, slopes, position, row) -> popxl.Tensor:
        inputs = [q, k, v, key_cache, value_cache, slopes, position]
        if row is None:
            graph = popxl.gir().create_graph(token_attention, *inputs)
        else:
            inputs = [*inputs, row]
            attention = verify_attention if position.rank else prompt_attention
            graph = popxl.gir().create_graph(attention, *inputs)
        (context,) = ops.call(graph, *inputs)
        return context

    @staticmethod
    def hf_mapping(
        config: BloomConfig, variables: addons.NamedTensors, hf_module: Any
    ) -> dict[popxl.Variable, np.ndarray]:
        """The weights of a transformers `BloomAttention`."""
        slopes = alibi_slopes(config.model.heads)
        return {
            **LinearTP2D.hf_mapping(config, variables.qkv, hf_module.query_key_value, "tp2"),
            **LinearTP2D.hf_mapping(config, variables.dense, hf_module.dense, "tp1"),
            variables.alibi_slopes: shard_vector(config, slopes, "tp1"),
        }
