"""The rotary embedding of the public LLaMA and Dolly programs, in PopXL ops instead of C++."""

from __future__ import annotations

import popxl
from popxl import ops


def rotary_pos_embed(
    t: popxl.Tensor, sin: popxl.Tensor, cos: popxl.Tensor, rotary_dim: int | None = None
) -> popxl.Tensor:
    """Rotate the halves of the first `rotary_dim` elements of each head.

    `t` is (batch, tokens, heads, head_dim); the tables are (tokens, rotary_dim / 2), or have a
    batch before that.
    """
    size = rotary_dim or t.shape[-1]
    tokens = sin.shape[-2]
    sin = sin.reshape((-1, tokens, 1, size // 2))  # the same for all heads
    cos = cos.reshape((-1, tokens, 1, size // 2))
    first, second = t[..., : size // 2], t[..., size // 2 : size]
    parts = [first * cos - second * sin, second * cos + first * sin]
    if size < t.shape[-1]:
        parts.append(t[..., size:])
    return ops.concat(parts, axis=-1)
