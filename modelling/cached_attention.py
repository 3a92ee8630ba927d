"""Attention over a KV cache, each form a graph of its own.

Each is declared as a composite, so a runtime may compute it by a kernel; what it means is what
stands here. Every cache is `(batch_size, heads, sequence_length, head_dim)` and is written to in
place. A position is the number of tokens before it in its row.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import popxl
from popxl import ops
from popxl_shared.alibi import alibi_bias
from popxl_torch import composite

MASKED = float(np.finfo(np.float32).min)


@composite("cached_attention", version=1, bias="alibi", queries="chunk of a row")
def prompt_attention(
    q: popxl.Tensor,
    k: popxl.Tensor,
    v: popxl.Tensor,
    key_cache: popxl.TensorByRef,
    value_cache: popxl.TensorByRef,
    slopes: popxl.Tensor | None,
    position: popxl.Tensor,
    row: popxl.Tensor,
) -> popxl.Tensor:
    """A chunk of tokens of one row, the first of them at `position`.

    Args:
        q, k, v: `(tokens, heads, head_dim)`.
        slopes: ALiBi's, float32 `(heads,)`; None for none, as `WITHOUT_BIAS` has it.
        position, row: int32 scalars; `position + tokens` must not exceed the sequence length.

    Returns:
        `(tokens, heads, head_dim)`.
    """
    tokens = q.shape[0]
    at = ops.concat([ops.reshape(row, (1,)), ops.reshape(position, (1,))])
    for cache, new in ((key_cache, k), (value_cache, v)):
        by_head = ops.transpose(new, (1, 0, 2))
        by_head = ops.reshape(by_head, (1, *by_head.shape))
        ops.dynamic_update_(cache, at, by_head, axes=[0, 2], sizes=[1, tokens], no_overlap=True)
    mine = [
        ops.squeeze(ops.dynamic_slice(c, ops.reshape(row, (1,)), [0], [1], True), [0])
        for c in (key_cache, value_cache)
    ]
    queries = ops.cast(position + popxl.constant(np.arange(tokens, dtype=np.int32)), popxl.float32)
    bias = masked_bias(slopes, queries, key_cache.shape[2])
    context = attend(ops.transpose(q, (1, 0, 2)), mine[0], mine[1], bias)
    return ops.transpose(context, (1, 0, 2))


@composite("cached_attention", version=1, bias="alibi", queries="chunks of rows")
def prompts_attention(
    q: popxl.Tensor,
    k: popxl.Tensor,
    v: popxl.Tensor,
    key_cache: popxl.TensorByRef,
    value_cache: popxl.TensorByRef,
    slopes: popxl.Tensor,
    positions: popxl.Tensor,
    rows: popxl.Tensor,
) -> popxl.Tensor:
    """Chunks of several rows, in blocks of as many tokens each.

    Args:
        q, k, v: `(tokens, heads, head_dim)`.
        slopes: ALiBi's, float32 `(heads,)`.
        positions: where each block's first token stands, int32 `(blocks,)`.
        rows: that of each block, likewise; blocks of one row are in order.

    Returns:
        `(tokens, heads, head_dim)`.
    """
    blocks = positions.shape[0]
    size = q.shape[0] // blocks
    contexts = []
    for i in range(blocks):
        new_q, new_k, new_v = (t[i * size : (i + 1) * size] for t in (q, k, v))
        given = new_q, new_k, new_v, key_cache, value_cache, slopes
        contexts.append(prompt_attention(*given, positions[i], rows[i]))
    return ops.concat(contexts, 0)


@composite("cached_attention", version=1, bias="alibi", queries="tokens of a row")
def verify_attention(
    q: popxl.Tensor,
    k: popxl.Tensor,
    v: popxl.Tensor,
    key_cache: popxl.TensorByRef,
    value_cache: popxl.TensorByRef,
    slopes: popxl.Tensor,
    positions: popxl.Tensor,
    row: popxl.Tensor,
) -> popxl.Tensor:
    """The next tokens of one row: what `token_attention` gives for one after the other.

    Args:
        q, k, v: `(tokens, heads, head_dim)`.
        slopes: ALiBi's, float32 `(heads,)`.
        positions: where each token stands, int32 `(tokens,)`: one behind the other, and all less
            than the sequence length.
        row: int32 scalar.

    Returns:
        `(tokens, heads, head_dim)`.
    """
    return prompt_attention(q, k, v, key_cache, value_cache, slopes, positions[0], row)


@composite("cached_attention", version=1, bias="alibi", queries="token of some rows")
def token_attention(
    q: popxl.Tensor,
    k: popxl.Tensor,
    v: popxl.Tensor,
    key_cache: popxl.TensorByRef,
    value_cache: popxl.TensorByRef,
    slopes: popxl.Tensor,
    positions: popxl.Tensor,
    rows: popxl.Tensor,
) -> popxl.Tensor:
    """One token for each of some rows of the cache.

    Args:
        q, k, v: `(tokens, heads, head_dim)`.
        slopes: ALiBi's, float32 `(heads,)`.
        positions: where each token stands, int32 `(tokens,)`.
        rows: that of each token, likewise; tokens of the same row must be copies of one.

    Returns:
        `(tokens, heads, head_dim)`.
    """
    for number in range(q.shape[0]):
        at = ops.concat([rows[number : number + 1], positions[number : number + 1]])
        for cache, new in ((key_cache, k), (value_cache, v)):
            token = ops.reshape(new[number], (1, new.shape[1], 1, new.shape[2]))
            ops.dynamic_update_(cache, at, token, axes=[0, 2], sizes=[1, 1], no_overlap=True)
    queries = ops.reshape(ops.cast(positions, popxl.float32), (-1, 1, 1))
    bias = masked_bias(slopes, queries, key_cache.shape[2])
    one_query = ops.reshape(q, (*q.shape[:2], 1, q.shape[2]))
    keys, values = (ops.gather(cache, rows) for cache in (key_cache, value_cache))
    return ops.squeeze(attend(one_query, keys, values, bias), [2])


def _without_bias(queries: str, attention: Callable[..., popxl.Tensor]) -> Callable:
    """An attention without slopes and without ALiBi, declared as such."""

    def attention_without_bias(
        q: popxl.Tensor,
        k: popxl.Tensor,
        v: popxl.Tensor,
        key_cache: popxl.TensorByRef,
        value_cache: popxl.TensorByRef,
        position: popxl.Tensor,
        row: popxl.Tensor,
    ) -> popxl.Tensor:
        return attention(q, k, v, key_cache, value_cache, None, position, row)

    attention_without_bias.__name__ = f"{attention.__name__}_without_bias"
    declared = composite("cached_attention", version=1, bias="none", queries=queries)
    return declared(attention_without_bias)


WITHOUT_BIAS = {
    prompt_attention: _without_bias("chunk of a row", prompt_attention),
    prompts_attention: _without_bias("chunks of rows", prompts_attention),
    verify_attention: _without_bias("tokens of a row", verify_attention),
    token_attention: _without_bias("token of some rows", token_attention),
}
"""Each form's counterpart, which takes no slopes."""


def masked_bias(slopes: popxl.Tensor | None, queries: popxl.Tensor, keys: int) -> popxl.Tensor:
    """What is added to scores: ALiBi, and a mask over the keys ahead of the query.

    Args:
        slopes: `(heads,)`; None for no ALiBi.
        queries: positions of the queries, `(tokens,)`, or `(tokens, 1, 1)` for one of a row each.
        keys: their number; their positions are 0, 1, ...

    Returns:
        float32 `(heads, tokens, keys)`, or `(tokens, heads, 1, keys)`; without ALiBi one for all
        heads.
    """
    at = popxl.constant(np.arange(keys, dtype=np.float32))
    distance = at - ops.reshape(queries, (*queries.shape, 1))
    if slopes is None:
        bias = ops.mul(distance, 0.0)
    else:
        bias = alibi_bias(ops.reshape(slopes, (-1, 1, 1)), distance)
    return ops.where(ops.greater(distance, 0.0), MASKED, bias)


def attend(q: popxl.Tensor, k: popxl.Tensor, v: popxl.Tensor, bias: popxl.Tensor) -> popxl.Tensor:
    """softmax(q k^T / sqrt(head_dim) + bias) v, with scores and softmax in float32.

    Args:
        q: `(..., heads, tokens, head_dim)`; k, v: `(..., heads, keys, head_dim)`.
    """
    axes = (*range(k.rank - 2), k.rank - 1, k.rank - 2)
    scores = ops.matmul(q, ops.transpose(k, axes), output_type=popxl.float32)
    scores = scores * (1 / math.sqrt(q.shape[-1])) + bias
    return ops.matmul(ops.cast(ops.softmax(scores, -1), q.dtype), v)
