"""Ops that arrange elements anew, against numpy. They change no element, so results are equal."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops
from programs import (
    FLOATS,
    INTEGERS,
    LAYOUTS,
    by_replica,
    in_turn,
    numbers,
    run_on_layout,
    run_program,
)

DTYPES = [*FLOATS, *INTEGERS, popxl.bool]


def check(layout, build, reference, *values):
    """Each output of `build` equals that of `reference`, on every replica."""
    for number, got in enumerate(run_on_layout(layout, build, *values)):
        expected = by_replica(layout, lambda *xs, n=number: reference(*xs)[n], values)
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == expected.dtype


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_moved_untouched(dtype, layout, rng):
    check(
        layout,
        lambda x: (
            x.reshape((3, 8)),
            x.transpose(),
            x[::-1, 1],
            ops.concat([x, x], axis=1),
            *ops.split(x, 2, axis=-1),
        ),
        lambda x: (
            x.reshape(3, 8),
            x.T,
            x[::-1, 1],
            np.concatenate([x, x], axis=1),
            *np.split(x, 2, axis=-1),
        ),
        numbers(rng, (2, 3, 4), dtype, 0, 2),
    )


@in_turn("layout", LAYOUTS)
def test_reshape_and_flatten(layout, rng):
    check(
        layout,
        lambda x: (
            ops.reshape(x, (3, 8)),
            ops.reshape(x, (4, -1)),
            x.reshape(24),
            ops.flatten(x),
            x.flatten(),
            ops.reshape(x.transpose(), (2, 12)),
        ),
        lambda x: (
            x.reshape(3, 8),
            x.reshape(4, -1),
            x.reshape(24),
            x.ravel(),
            x.ravel(),
            x.T.reshape(2, 12),
        ),
        numbers(rng, (2, 3, 4), popxl.float32),
    )


@in_turn("layout", LAYOUTS)
def test_transpose(layout, rng):
    check(
        layout,
        lambda x: (ops.transpose(x), x.T, ops.transpose(x, (1, 2, 0)), x.transpose((0, -1, 1))),
        lambda x: (x.T, x.T, x.transpose(1, 2, 0), x.transpose(0, 2, 1)),
        numbers(rng, (2, 3, 4), popxl.float32),
    )


def test_in_place_forms_give_the_same_elements(rng):
    x = numbers(rng, (2, 3, 4), popxl.float32)[0]
    results = run_program(
        lambda x: (
            ops.reshape_(x, (6, 4)),
            x.reshape_((4, 6)),
            ops.transpose_(x, (2, 0, 1)),
            x.T_,
            ops.flatten_(x),
            x.flatten_(),
            x.detach_(),
        ),
        x,
    )
    expected = [
        x.reshape(6, 4),
        x.reshape(4, 6),
        x.transpose(2, 0, 1),
        x.T,
        x.ravel(),
        x.ravel(),
        x,
    ]
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("axes", [None, (0,), (0, 2), -2])
def test_squeeze(axes, rng):
    x = numbers(rng, (1, 3, 1, 2, 1), popxl.float32)[0].reshape(1, 3, 1, 1, 2)
    (got,) = run_program(lambda x: ops.squeeze(x, axes), x)
    np.testing.assert_array_equal(got, np.squeeze(x, axes))


@in_turn("layout", LAYOUTS)
def test_split_in_equal_parts_and_in_given_sizes(layout, rng):
    check(
        layout,
        lambda x: (*ops.split(x, 3, axis=1), *ops.split(x, [1, 4, 1], axis=-1)),
        lambda x: (*np.split(x, 3, axis=1), *np.split(x, [1, 5], axis=-1)),
        numbers(rng, (2, 6), popxl.float32),
    )


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis, layout, rng):
    check(
        layout,
        lambda *xs: [ops.concat(xs, axis=axis)],
        lambda *xs: [np.concatenate(xs, axis=axis)],
        *(numbers(rng, (2, 2), popxl.int32) for _ in range(3)),
    )


@in_turn("layout", LAYOUTS)
def test_slice(layout, rng):
    check(
        layout,
        lambda x: (
            ops.slice(x, 1),
            ops.slice(x, stop=-1),
            ops.slice(x, start=[1, 2], stop=[3, 5]),
            ops.slice(x, start=1, stop=6, step=2, axis=1),
            ops.slice(x, step=-1, axis=1),
            ops.slice(x, start=[5, None], stop=[1, None], step=[-2, -1], axis=[1, 0]),
            ops.slice(x, start=9),
            ops.slice(x, axis=1),
        ),
        lambda x: (
            x[1:],
            x[:-1],
            x[1:3, 2:5],
            x[:, 1:6:2],
            x[:, ::-1],
            x[::-1, 5:1:-2],
            x[9:],
            x,
        ),
        numbers(rng, (4, 7), popxl.float32),
    )


@in_turn("layout", LAYOUTS)
def test_indexing_with_integers_and_slices(layout, rng):
    check(
        layout,
        lambda x: (
            x[1],
            x[-1, 2],
            x[:, 1:3],
            x[..., 0],
            x[0, ..., ::2],
            x[2, 3, 4],
            x[np.int64(1)],
        ),
        lambda x: (x[1], x[-1, 2], x[:, 1:3], x[..., 0], x[0, ..., ::2], x[2, 3, 4], x[1]),
        numbers(rng, (3, 4, 5), popxl.float32),
    )


@in_turn("layout", LAYOUTS)
def test_indexing_with_tensors_and_arrays(layout, rng):
    check(
        layout,
        lambda x, i: (x[i], x[np.array([[2, 0], [1, 1]])], x[[1, 2]]),
        lambda x, i: (x[i], x[[[2, 0], [1, 1]]], x[[1, 2]]),
        numbers(rng, (3, 4), popxl.float32),
        numbers(rng, (2, 2), popxl.int32, 0, 3),
    )


@in_turn("layout", LAYOUTS)
def test_diagonal(layout, rng):
    x = numbers(rng, (4, 4), popxl.float32)
    check(layout, lambda x: [x.diag()], lambda x: [np.diag(x)], x)


def test_identities(rng):
    x = numbers(rng, (2, 3), popxl.float32)[0]
    results = run_program(
        lambda x: (ops.identity(x), ops.identity(x, "same"), ops.detach(x), ops.io_tile_copy(x)), x
    )
    for got in results:
        np.testing.assert_array_equal(got, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_init_is_zero(dtype):
    zeros, undefined = run_program(
        lambda: (ops.init((2, 3), dtype), ops.init((2,), dtype, "empty", "undef"))
    )
    np.testing.assert_array_equal(zeros, np.zeros((2, 3), dtype.as_numpy()))
    assert undefined.shape == (2,)
    assert zeros.dtype == undefined.dtype == dtype.as_numpy()


@pytest.mark.parametrize("replicas", [1, 4])
def test_empty_tensors(replicas):
    x = np.zeros((replicas, 0, 3) if replicas > 1 else (0, 3), np.float32)
    results = run_program(
        lambda x: (x.reshape((3, 0)), x.T, ops.sum(x, axis=0), x + 1, x[:, 1]),
        x,
        replicas=replicas,
    )
    shapes = [r.shape[1:] if replicas > 1 else r.shape for r in results]
    assert shapes == [(3, 0), (3, 0), (3,), (0, 3), (0,)]
    np.testing.assert_array_equal(results[2], 0)
