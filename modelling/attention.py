"""Self-attention; heads are split over tp1, the hidden dimension over tp2."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_shared.alibi import alibi_slopes

from config import BloomConfig
from modelling.cached_attention import (
    WITHOUT_BIAS,
    prompt_attention,
    prompts_attention,
    token_attention,
    verify_attention,
)
from modelling.linear import LinearTP2D
from modelling.sharding import axis_size, blank, shard_vector, split_over


class SelfAttentionTP2D(addons.Module):
    """Query, key and value projections, attention, and the projection of its result.

    Args:
        alibi: whether distance lessens scores; otherwise every key before a query counts alike.
    """

    def __init__(self, config: BloomConfig, alibi: bool):
        super().__init__()
        self.config, self.alibi = config, alibi
        hidden_size = config.model.hidden_size
        self.qkv = LinearTP2D(config, 3 * hidden_size, contract="tp2")
        self.dense = LinearTP2D(config, hidden_size, contract="tp1")
        self.heads = config.model.heads // axis_size(config, "tp1")

    def build(
        self,
        x: popxl.Tensor,
        key_cache: popxl.TensorByRef,
        value_cache: popxl.TensorByRef,
        position: popxl.Tensor,
        row: popxl.Tensor,
    ) -> popxl.Tensor:
        """From `(tokens, hidden_size / tp2)` to the same.

        Args:
            key_cache, value_cache: `(batch_size, heads / tp1, sequence_length, head_dim)`, written
                to in place.
            position: int32; where the first token stands, or where each of them does, `(tokens,)`,
                or the first of each block of tokens, `(blocks,)`.
            row: int32; the row of the cache that all tokens belong to, or those that tokens or
                blocks do.
        """
        slopes = [self._slopes()] if self.alibi else []
        q, k, v = self._split_heads(self.qkv(x))
        inputs = [q, k, v, key_cache, value_cache, *slopes, position, row]
        of_one = verify_attention if position.rank else prompt_attention
        of_some = token_attention if row.shape == x.shape[:1] else prompts_attention
        attention = of_some if row.rank else of_one
        form = attention if self.alibi else WITHOUT_BIAS[attention]
        graph = popxl.gir().create_graph(form, *inputs)
        (context,) = ops.call(graph, *inputs)
        return self.dense(ops.reshape(context, (x.shape[0], -1)))

    def _slopes(self) -> popxl.Tensor:
        """float32 `(heads / tp1,)`."""
        return self.add_variable_input(
            "alibi_slopes",
            blank((self.heads,), popxl.float32),
            popxl.float32,
            replica_grouping=split_over(self.config, "tp1"),
        )

    def _split_heads(self, fused: popxl.Tensor) -> list[popxl.Tensor]:
        """`(tokens, heads * 3 * head_dim)` as three `(tokens, heads, head_dim)`."""
        shape = (fused.shape[0], self.heads, 3, self.config.model.head_dim)
        return [ops.squeeze(t, [2]) for t in ops.split(ops.reshape(fused, shape), 3, axis=2)]

    @staticmethod
    def hf_mapping(
        config: BloomConfig, variables: addons.NamedTensors, qkv: Any, dense: Any
    ) -> dict[popxl.Variable, np.ndarray]:
        """The weights of its two linear layers, read like `torch.nn.Linear`s.

        Args:
            qkv: its output is `heads * 3 * head_dim`: a head's query, key and value lie together.
        """
        mapping = {
            **LinearTP2D.hf_mapping(config, variables.qkv, qkv, "tp2"),
            **LinearTP2D.hf_mapping(config, variables.dense, dense, "tp1"),
        }
        if "alibi_slopes" in variables.keys():  # noqa: SIM118 - a tree, not a dictionary
            slopes = alibi_slopes(config.model.heads)
            mapping[variables.alibi_slopes] = shard_vector(config, slopes, "tp1")
        return mapping
