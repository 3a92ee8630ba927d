"""Attention of queries over keys that are at hand: `softmax(q k^T * scale + bias) v`."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from popxl_shared.alibi import alibi_bias

from popxl_torch.backends.specs import AttentionSpec
from popxl_torch.memory.arrays import broadcast_shapes


def score_bias(
    spec: AttentionSpec, slopes: torch.Tensor | None, distance: torch.Tensor
) -> torch.Tensor:
    """What is added to scores: minus infinity where a query does not see a key.

    Args:
        slopes: `(..., heads, 1, 1)`, of ALiBi.
        distance: from a query to a key, 0 or less behind it, `(..., 1, tokens, keys)`.
    """
    hidden = distance > 0
    if spec.window is not None:
        hidden |= distance <= -spec.window
    bias = torch.zeros_like(distance) if slopes is None else alibi_bias(slopes, distance)
    return bias.masked_fill(hidden, -torch.inf)


def attend(
    spec: AttentionSpec,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    lead: int,
) -> torch.Tensor:
    """Like q, `(*lead, heads, tokens, head_dim)`, with the axes in front as batch."""
    if spec.group > 1:
        k, v = (t.repeat_interleave(spec.group, -3) for t in (k, v))
    mesh = broadcast_shapes(*(t.shape[:lead] for t in (q, k, v, bias)))
    given = (q, k, v, bias)
    flat = [t.expand(*mesh, *t.shape[lead:]).reshape(-1, *t.shape[lead:]) for t in given]
    queries, keys, values, mask = flat
    factor = spec.factor(q.shape[-1])
    if q.dtype != torch.float32 and q.shape[-2] == 1:
        context = _one_query(queries, keys, values, mask, factor)
    else:
        mask = mask.to(q.dtype)
        context = F.scaled_dot_product_attention(queries, keys, values, mask, scale=factor)
    return context.reshape(*mesh, *q.shape[lead:])


def _one_query(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, factor: float
) -> torch.Tensor:
    scores = torch.matmul(q, k.transpose(-1, -2)).float() * factor + bias
    return torch.matmul(torch.softmax(scores, -1).to(q.dtype), v)
