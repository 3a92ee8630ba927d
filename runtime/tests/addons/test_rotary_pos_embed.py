"""Rotary position embedding, held against complex numbers."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl_addons.ops.rotary_pos_embed import (
    rotary_pos_embed,
    trig_table_constants,
    trig_tables,
)


def turned(x: np.ndarray, rotary_dim: int, base: int) -> np.ndarray:
    """Pairs as complex numbers, multiplied by a number of length 1."""
    angles = np.outer(np.arange(x.shape[1]), base ** (-np.arange(0, rotary_dim, 2) / rotary_dim))
    points = x[..., :rotary_dim:2] + 1j * x[..., 1:rotary_dim:2]
    points = points * np.exp(1j * angles)[:, None]
    y = x.astype(np.float64)
    y[..., :rotary_dim:2], y[..., 1:rotary_dim:2] = points.real, points.imag
    return y


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(
    ("shape", "rotary_dim", "base"),
    [((2, 5, 3, 8), None, 10000), ((2, 5, 3, 8), 4, 10000), ((1, 7, 1, 6), 2, 100)],
)
def test_pairs_are_turned_by_their_position(run, rng, shape, rotary_dim, base, replicas, dtype):
    x = rng.normal(size=(replicas, *shape)).astype(dtype)
    turning = rotary_dim or shape[-1]

    def build(t):
        tables = trig_table_constants(shape[1], turning, base, t.dtype)
        batched = [table.reshape((1, *table.shape)) for table in tables]
        return [rotary_pos_embed(t, *tables, rotary_dim), rotary_pos_embed(t, *batched, rotary_dim)]

    given = x if replicas > 1 else x[0]
    for y in run(build, given, replicas=replicas):
        expected = np.stack([turned(part, turning, base) for part in x])
        tolerance = 1e-5 if dtype == np.float32 else 1e-2
        np.testing.assert_allclose(y.reshape(x.shape), expected, rtol=tolerance, atol=tolerance)


def test_tables_are_numpy_arrays_of_sines_and_cosines():
    sin, cos = trig_tables(4, 6)
    assert sin.shape == cos.shape == (4, 3)
    assert sin.dtype == np.float32
    np.testing.assert_allclose(sin**2 + cos**2, 1, rtol=1e-6)
    np.testing.assert_allclose(sin[1, 0], np.sin(1.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "table", "rotary_dim", "message"),
    [
        ((2, 5, 8), (5, 4), None, r"must be \(batch, tokens, heads, head_dim\)"),
        ((2, 5, 3, 8), (5, 4), 3, "rotary_dim must be even and at most 8"),
        ((2, 5, 3, 8), (5, 4), 10, "rotary_dim must be even and at most 8"),
        ((2, 5, 3, 8), (5, 8), None, r"sin and cos must be \(5, 4\)"),
    ],
)
def test_what_cannot_be_turned_is_refused(main_graph, shape, table, rotary_dim, message):
    t, sin = (popxl.constant(np.zeros(s, np.float32)) for s in (shape, table))
    with pytest.raises(ValueError, match=message):
        rotary_pos_embed(t, sin, sin, rotary_dim)
