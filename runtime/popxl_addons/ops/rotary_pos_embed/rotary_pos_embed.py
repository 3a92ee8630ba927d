"""Rotary position embedding (RoPE, arXiv 2104.09864) of interleaved pairs.

Elements 2i and 2i + 1 of a head are the coordinates of a point, which the token at position m turns
by the angle m / base^(2i / rotary_dim).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
from popxl import ops


def trig_tables(
    seq_len: int, rotary_dim: int, base: int = 10000, np_dtype: Any = "float32"
) -> tuple[np.ndarray, np.ndarray]:
    """Sines and cosines of the angles, each `(seq_len, rotary_dim / 2)`."""
    exponents = np.arange(0, rotary_dim, 2).astype(np_dtype) / rotary_dim
    angles = np.outer(np.arange(seq_len).astype(np_dtype), base**-exponents)
    return np.sin(angles), np.cos(angles)


def trig_table_constants(
    seq_len: int,
    rotary_dim: int,
    base: int = 10000,
    dtype: popxl.dtypes.dtype = popxl.float32,
) -> tuple[popxl.Tensor, popxl.Tensor]:
    """`trig_tables` as constants of the current graph."""
    sin, cos = trig_tables(seq_len, rotary_dim, base, dtype.as_numpy())
    return popxl.constant(sin, dtype), popxl.constant(cos, dtype)


def rotary_pos_embed(
    t: popxl.Tensor, sin: popxl.Tensor, cos: popxl.Tensor, rotary_dim: int | None = None
) -> popxl.Tensor:
    """`t` with the first `rotary_dim` elements of each head turned.

    Args:
        t: `(batch, tokens, heads, head_dim)`.
        sin, cos: `(tokens, rotary_dim / 2)`, or with an axis of 1 or batch in front, of the dtype
            of `t`.
        rotary_dim: all elements of a head where None or 0.

    Raises:
        ValueError: where a rank differs, or `rotary_dim` is odd or larger than a head.
    """
    rotary_dim = rotary_dim or t.shape[-1]
    _check(t, sin, cos, rotary_dim)
    # [batch, tokens, heads, rotary_dim / 2, 2]
    turned = ops.slice(t, stop=rotary_dim, axis=3) if rotary_dim < t.shape[-1] else t
    pairs = turned.reshape((*t.shape[:3], rotary_dim // 2, 2))
    x, y = ops.split(pairs, 2, axis=4)
    sin, cos = (table.reshape((*_lead(table), 1, rotary_dim // 2, 1)) for table in (sin, cos))
    both = ops.concat([x * cos - y * sin, y * cos + x * sin], axis=4)
    result = both.reshape((*t.shape[:3], rotary_dim))
    if rotary_dim == t.shape[-1]:
        return result
    return ops.concat([result, ops.slice(t, start=rotary_dim, axis=3)], axis=3)


def _lead(table: popxl.Tensor) -> tuple[int, ...]:
    """Batch and tokens of a table."""
    return table.shape[:-1] if table.rank == 3 else (1, table.shape[0])


def _check(t: popxl.Tensor, sin: popxl.Tensor, cos: popxl.Tensor, rotary_dim: int) -> None:
    if t.rank != 4:
        raise ValueError(
            f"rotary_pos_embed: {t.name} must be (batch, tokens, heads, head_dim), got {t.shape}"
        )
    if rotary_dim % 2 or rotary_dim > t.shape[-1]:
        raise ValueError(
            f"rotary_pos_embed: rotary_dim must be even and at most {t.shape[-1]}, the size of a "
            f"head of {t.name}, got {rotary_dim}"
        )
    for table in (sin, cos):
        if table.rank not in (2, 3) or table.shape[-2:] != (t.shape[1], rotary_dim // 2):
            raise ValueError(
                f"rotary_pos_embed: sin and cos must be ({t.shape[1]}, {rotary_dim // 2}), "
                f"{table.name} is {table.shape}"
            )
