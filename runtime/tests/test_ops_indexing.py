"""Ops that pick or replace elements where tensors say, against numpy."""

from __future__ import annotations

import itertools

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


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("index_shape", [(), (4,), (2, 3)], ids=str)
def test_gather_is_take(index_shape, axis, layout, rng):
    x, i = numbers(rng, (3, 4, 5), popxl.float32), numbers(rng, index_shape, popxl.int32, 0, 3)
    (got,) = run_on_layout(layout, lambda x, i: ops.gather(x, i, axis), x, i)
    np.testing.assert_array_equal(got, by_replica(layout, lambda x, i: np.take(x, i, axis), [x, i]))


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, popxl.bool], ids=str)
def test_gather_of_every_dtype(dtype, rng):
    x, i = numbers(rng, (5, 2), dtype, 0, 2), numbers(rng, (3,), popxl.int32, 0, 5)
    (got,) = run_on_layout("all replicas differ", ops.gather, x, i)
    expected = by_replica("all replicas differ", np.take, [x, i, [np.int64(0)] * 4])
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == dtype.as_numpy()


@pytest.mark.parametrize("dtype", [popxl.uint16, popxl.uint32])
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_of_unsigned_words_are_picked_as_they_are(dtype, axis, rng):
    """As those of packed weights are."""
    highest = np.iinfo(dtype.as_numpy()).max
    table = rng.integers(0, highest, (5, 6), dtype.as_numpy(), endpoint=True)
    table[1, 2] = highest
    rows = np.array([2, 1, 4, 1], np.int32)
    (got,) = run_program(lambda: ops.gather(popxl.variable(table), popxl.constant(rows), axis))
    np.testing.assert_array_equal(got, table.take(rows, axis))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("size", [5, 300])
def test_indices_of_every_integer_type(dtype, size, rng):
    """Among them types that cannot hold the size of the axis."""
    x, i = numbers(rng, (size, 2), popxl.float32), numbers(rng, (3,), dtype, 0, 5)
    (got,) = run_on_layout("all replicas differ", ops.gather, x, i)
    np.testing.assert_array_equal(got, by_replica("all replicas differ", lambda x, i: x[i], [x, i]))


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1])
def test_gather_gives_zeros_out_of_range_where_asked_to(axis, layout, rng):
    x, i = numbers(rng, (3, 4), popxl.float32, 1, 2), numbers(rng, (2, 6), popxl.int32, -3, 7)

    def reference(x, i):
        inside = (i >= 0) & (i < x.shape[axis])
        taken = np.take(x, np.where(inside, i, 0), axis)
        return np.where(inside[..., None] if axis == 0 else inside, taken, 0)

    (got,) = run_on_layout(layout, lambda x, i: ops.gather(x, i, axis, zero_OOR=True), x, i)
    np.testing.assert_array_equal(got, by_replica(layout, reference, [x, i]))


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scatter(axis, layout, rng):
    x, values = numbers(rng, (4, 3), popxl.float32), numbers(rng, (2, 3), popxl.float32)
    # Each column of rows, or each row of columns, names an element once.
    i = [rng.permuted(np.tile(np.arange(3), (2, 1)), axis=1).astype(np.int32) for _ in range(4)]
    if axis == 0:
        i = [rng.permuted(np.tile(np.arange(4)[:, None], 3), axis=0)[:2].astype("i4") for _ in i]

    def reference(x, i, values):
        out = x.copy()
        np.put_along_axis(out[: len(i)] if axis else out, i, values, axis)
        return out

    (got,) = run_on_layout(layout, lambda x, i, v: ops.scatter(x, i, v, axis), x, i, values)
    np.testing.assert_array_equal(got, by_replica(layout, reference, [x, i, values]))


@pytest.mark.parametrize("dtype", [popxl.uint8, popxl.int8, popxl.uint32], ids=str)
def test_scatter_with_indices_of_other_types(dtype):
    x = np.zeros(400, np.float32)
    i = np.array([3, 0]).astype(dtype.as_numpy())
    (got,) = run_program(lambda x, i: ops.scatter(x, i, x[:2] + 1), x, i)
    np.testing.assert_array_equal(got, np.isin(np.arange(400), i))


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, popxl.bool], ids=str)
def test_dynamic_slice_and_update(dtype, layout, rng):
    x, update = numbers(rng, (4, 3, 5), dtype, 0, 2), numbers(rng, (2, 3, 4), dtype, 0, 2)
    i = numbers(rng, (2,), popxl.int32, 0, 2)

    def build(i, x, update):
        part = ops.dynamic_slice(x, i, axes=[0, 2], sizes=[2, 4], no_overlap=True)
        changed = ops.dynamic_update(x, i, update, axes=[0, 2], sizes=[2, 4], no_overlap=True)
        return part, changed, x

    def reference(i, x, update):
        region = (slice(i[0], i[0] + 2), slice(None), slice(i[1], i[1] + 4))
        changed = x.copy()
        changed[region] = update
        return x[region], changed, x

    results = run_on_layout(layout, build, i, x, update)
    for number, got in enumerate(results):
        expected = by_replica(layout, lambda *a, n=number: reference(*a)[n], [i, x, update])
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == dtype.as_numpy()


def test_a_region_that_would_stick_out_is_moved_inside():
    x = np.arange(6, dtype=np.float32)
    for start, first in [(-4, 0), (5, 3), (3, 3)]:
        i = np.array([start], np.int32)
        part, changed = run_program(
            lambda x, i: (
                ops.dynamic_slice(x, i, [0], [3], False),
                ops.dynamic_update(x, i, x[:3] - 9, [0], [3], False),
            ),
            x,
            i,
        )
        np.testing.assert_array_equal(part, x[first : first + 3])
        expected = x.copy()
        expected[first : first + 3] = x[:3] - 9
        np.testing.assert_array_equal(changed, expected)


def test_axes_of_a_region_in_any_order():
    x = np.arange(20, dtype=np.float32).reshape(4, 5)
    i = np.array([2, 1], np.int32)
    (got,) = run_program(lambda x, i: ops.dynamic_slice(x, i, [-1, 0], [2, 3], False), x, i)
    np.testing.assert_array_equal(got, x[1:4, 2:4])


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", [popxl.float32, popxl.float16, popxl.int32], ids=str)
def test_onehot(dtype, axis, layout, rng):
    i, values = numbers(rng, (2, 3), popxl.int32, -1, 5), numbers(rng, (2,), dtype, 0, 9)

    def reference(i, values):
        at = axis % 3
        out = np.full((*i.shape[:at], 4, *i.shape[at:]), values[0], dtype.as_numpy())
        for where in itertools.product(*map(range, i.shape)):
            if 0 <= i[where] < 4:
                out[(*where[:at], i[where], *where[at:])] = values[1]
        return out

    (got,) = run_on_layout(layout, lambda i, v: ops.onehot(i, 4, v, axis), i, values)
    np.testing.assert_array_equal(got, by_replica(layout, reference, [i, values]))


def test_onehot_of_more_classes_than_the_index_type_can_count():
    i, values = np.array([5, 127], np.int8), np.array([0, 1], np.float32)
    (got,) = run_program(lambda i, v: ops.onehot(i, popxl.constant(200), v, 1), i, values)
    np.testing.assert_array_equal(got, np.eye(200)[i])
