"""Norms, against torch in float64; half types to their own rounding."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
import torch
from popxl import ops
from programs import (
    FLOATS,
    LAYOUTS,
    assert_rounded,
    by_replica,
    in_turn,
    numbers,
    run_on_layout,
    run_program,
)

SHAPES = [(3, 8), (2, 8, 3), (2, 8, 3, 2), (1, 8, 2, 1, 3)]
ULPS = {popxl.float32: 8, popxl.float16: 1, popxl.bfloat16: 1}


def torchs(function):
    """`function` of float64 tensors, on arrays."""

    def reference(*arrays):
        return function(*(torch.from_numpy(a.astype(np.float64)) for a in arrays)).numpy()

    return reference


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_group_norm(groups, dtype, layout, rng):
    for shape in SHAPES[int(groups == 8) :]:  # a group of one number is 0
        x, weight, bias = (numbers(rng, s, dtype) for s in (shape, (8,), (8,)))
        reference = torchs(
            lambda x, w, b: torch.nn.functional.group_norm(x, groups, w, b, eps=1e-3)
        )
        (got,) = run_on_layout(
            layout, lambda x, w, b: ops.group_norm(x, w, b, groups, eps=1e-3), x, weight, bias
        )
        expected = by_replica(layout, reference, [x, weight, bias])
        assert_rounded(got, expected, dtype, ULPS[dtype], scale=2)


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_norm_is_over_all_axes_but_the_first(shape, dtype, layout, rng):
    x, weight, bias = (numbers(rng, s, dtype) for s in (shape, (8,), (8,)))

    def layer_norm(x, weight, bias):
        normed = torch.nn.functional.layer_norm(x, x.shape[1:], eps=1e-3)
        channels = (8,) + (1,) * (x.ndim - 2)
        return normed * weight.reshape(channels) + bias.reshape(channels)

    (got,) = run_on_layout(
        layout, lambda x, w, b: ops.layer_norm(x, w, b, eps=1e-3), x, weight, bias
    )
    expected = by_replica(layout, torchs(layer_norm), [x, weight, bias])
    assert_rounded(got, expected, dtype, ULPS[dtype], scale=2)


def test_half_types_take_statistics_in_float32():
    """In float16 a mean of 4,096 numbers around 100, and their squares, are beyond its range."""
    x = np.tile(np.array([100, 102], np.float16), 2048).reshape(1, 2, 2048)
    one, zero = np.ones(2, np.float16), np.zeros(2, np.float16)
    (got,) = run_program(lambda x, w, b: ops.group_norm(x, w, b, 2), x, one, zero)
    np.testing.assert_array_equal(got, np.where(x == 100, -1, 1))


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_batch_norm_inference(shape, dtype, layout, rng):
    x, scale, bias, mean = (numbers(rng, s, dtype) for s in (shape, (8,), (8,), (8,)))
    var = numbers(rng, (8,), dtype, 0.5, 2)

    def reference(x, scale, bias, mean):
        return torch.nn.functional.batch_norm(x, mean, fixed, scale, bias, eps=1e-2)

    fixed = torch.from_numpy(var[0].astype(np.float64))
    (got,) = run_on_layout(
        layout,
        lambda x, s, b, m: ops.batch_norm_inference(x, s, b, m, popxl.constant(var[0]), 1e-2),
        *(x, scale, bias, mean),
    )
    expected = by_replica(layout, torchs(reference), [x, scale, bias, mean])
    assert_rounded(got, expected, dtype, ULPS[dtype], scale=8)


def test_batch_norm_takes_statistics_of_another_type(rng):
    x = numbers(rng, (2, 3, 4), popxl.float16)[0]
    one, mean = np.ones(3, np.float16), np.array([1, -2, 0.5], np.float32)

    def build(x, one, mean):
        var = popxl.constant(np.full(3, 4, np.float32))
        return ops.batch_norm_inference(x, one, one, mean, var, epsilon=0)

    (got,) = run_program(build, x, one, mean)
    expected = (x.astype(np.float64) - mean[:, None]) / 2 + 1
    assert_rounded(got, expected, popxl.float16)


CASES = {
    "rank": (lambda t: ops.group_norm(t.row, t.row, t.row, 1), r"group_norm: row must be \(batch"),
    "groups": (
        lambda t: ops.group_norm(t.x, t.row, t.row, 2),
        r"group_norm: num_groups must divide the 3 channels, got 2",
    ),
    "no groups": (lambda t: ops.group_norm(t.x, t.row, t.row, 0), "divide the 3 channels, got 0"),
    "bias": (
        lambda t: ops.group_norm(t.x, t.row, t.x, 1),
        r"group_norm: bias must be of shape \(3,\), got \(2, 3\)",
    ),
    "batch norm rank": (
        lambda t: ops.batch_norm_inference(t.x, t.row, t.row, t.row, t.row),
        r"batch_norm_inference: x must be \(batch, channels, \*spatial\).*\(2, 3\)",
    ),
    "batch norm mean": (
        lambda t: ops.batch_norm_inference(t.x.reshape((1, 3, 2)), t.row, t.row, t.x, t.row),
        r"batch_norm_inference: mean must be of shape \(3,\), got \(2, 3\)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_while_the_program_is_built(case, things):
    build, message = CASES[case]
    with pytest.raises(ValueError, match=message):
        build(things)
