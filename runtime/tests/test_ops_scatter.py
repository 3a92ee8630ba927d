"""Ops that reduce at indices or pick in groups, against loops on numpy."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
import torch
from popxl import ops
from programs import (
    FLOATS,
    INTEGERS,
    LAYOUTS,
    assert_rounded,
    by_replica,
    in_turn,
    numbers,
    run_on_layout,
    run_program,
)

REDUCE = {"sum": np.add, "min": np.minimum, "max": np.maximum}


def scattered(data, indices, reduction, axis, size, initial=None):
    """Element by element; `indices` are of the rank of `data`."""
    shape = list(indices.shape)
    shape[axis] = size
    wide = np.float64 if data.dtype.kind not in "iu" else np.int64
    out = np.zeros(shape, wide) if initial is None else initial.astype(wide)
    filled = np.full(out.shape, initial is not None)
    for at in np.ndindex(*indices.shape):
        to = list(at)
        to[axis] = indices[at]
        to = tuple(to)
        value = data[at].astype(wide)
        out[to] = REDUCE[reduction](out[to], value) if filled[to] else value
        filled[to] = True
    return out


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
@pytest.mark.parametrize("reduction", REDUCE)
def test_scatter_reduce(reduction, dtype, layout, rng):
    """Several elements at an index, and none at some."""
    shape, size = (6, 3), 5
    data = numbers(rng, shape, dtype, -9, 9)
    indices = [rng.integers(0, size - 1, shape).astype(np.int32) for _ in range(4)]
    initial = numbers(rng, (size, 3), dtype, -9, 9)

    def build(data, indices, initial):
        return (
            ops.scatter_reduce(data, indices, reduction, axis_size=size),
            ops.scatter_reduce(data, indices, reduction, initial),
        )

    plain, onto = run_on_layout(layout, build, data, indices, initial)
    given = [data, indices, initial]
    expected = by_replica(layout, lambda d, i, _: scattered(d, i, reduction, 0, size), given)
    assert_rounded(plain, expected.astype(dtype.as_numpy()), dtype, 1, scale=9)
    expected = by_replica(layout, lambda d, i, v: scattered(d, i, reduction, 0, size, v), given)
    assert_rounded(onto, expected.astype(dtype.as_numpy()), dtype, 1, scale=9)


@pytest.mark.parametrize("reduction", REDUCE)
@pytest.mark.parametrize("axis", [0, 1, -1])
@in_turn("layout", LAYOUTS)
def test_one_index_for_each_element_along_the_axis(layout, axis, reduction, rng):
    shape = (3, 4, 5)
    data = numbers(rng, shape, popxl.float32)
    indices = [rng.integers(0, 6, shape[axis]).astype(np.uint32) for _ in range(4)]
    (got,) = run_on_layout(
        layout, lambda d, i: ops.scatter_reduce(d, i, reduction, axis=axis, axis_size=6),
        data, indices,
    )  # fmt: skip

    def reference(d, i):
        wide = np.moveaxis(np.broadcast_to(i, np.moveaxis(d, axis, -1).shape), -1, axis)
        return scattered(d, wide, reduction, axis, 6)

    assert_rounded(got, by_replica(layout, reference, [data, indices]), popxl.float32, 2, scale=3)


def test_a_vector_of_indices_may_have_axes_of_size_one(rng):
    data = numbers(rng, (6, 3), popxl.float32)[0]
    index = np.array([0, 1, 1, 3, 2, 0], np.int32)
    plain, column = run_program(
        lambda d, i: [ops.scatter_reduce(d, v, "sum", axis_size=5) for v in (i, i.reshape((6, 1)))],
        data, index,
    )  # fmt: skip
    expected = np.zeros((5, 3))
    np.add.at(expected, index, data)
    np.testing.assert_allclose(plain, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(column, plain)


@pytest.mark.parametrize("reduction", REDUCE)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_indices_that_are_not_broadcast_take_their_own_places(axis, reduction, rng):
    data = numbers(rng, (5, 6, 7), popxl.float32)[0]
    indices = rng.integers(0, 8, (4, 1, 5)).astype(np.int32)
    larger = [5, 6, 7]
    larger[axis] = 8
    initial = numbers(rng, larger, popxl.float32)[0]

    def build(d, i, v):
        return (
            ops.scatter_reduce(d, i, reduction, None, axis, 8, False),
            ops.scatter_reduce(d, i, reduction, v, axis, None, False),
        )

    plain, onto = run_program(build, data, indices, initial)
    name = {"sum": "sum", "min": "amin", "max": "amax"}[reduction]
    shape = list(indices.shape)
    shape[axis] = 8
    d, i, v = (torch.from_numpy(a) for a in (data, indices.astype(np.int64), initial))
    expected = torch.zeros(shape).scatter_reduce(axis, i, d, name, include_self=False)
    np.testing.assert_allclose(plain, expected.numpy(), rtol=1e-6)
    expected = v.scatter_reduce(axis, i, d, name, include_self=True)
    np.testing.assert_allclose(onto, expected.numpy(), rtol=1e-6)


def test_without_a_reduction_one_of_the_elements_is_kept():
    data, indices = np.array([5, 6, 7], np.int32), np.array([2, 0, 2], np.int32)
    initial = np.array([1, 2, 3, 4], np.int32)
    plain, onto = run_program(
        lambda d, i, v: (
            ops.scatter_reduce(d, i, "none", axis_size=4),
            ops.scatter_reduce(d, i, "none", v),
        ),
        data, indices, initial,
    )  # fmt: skip
    assert plain[2] in (5, 7) and onto[2] in (5, 7)
    np.testing.assert_array_equal(plain[[0, 1, 3]], [6, 0, 0])
    np.testing.assert_array_equal(onto[[0, 1, 3]], [6, 2, 4])


@pytest.mark.parametrize("reduction", REDUCE)
@pytest.mark.parametrize("vector", [True, False])
@in_turn("layout", LAYOUTS)
def test_groups_are_reduced_each_by_itself(layout, vector, reduction, rng):
    data = numbers(rng, (2, 6, 3), popxl.float32)
    shape = (2, 6) if vector else (2, 6, 3)
    indices = [rng.integers(0, 5, shape).astype(np.int32) for _ in range(4)]
    initial = numbers(rng, (2, 5, 3), popxl.float32)

    def build(d, i, v):
        return ops.grouped_scatter_reduce(d, i, reduction, v, axis=1, group_size=2)

    (got,) = run_on_layout(layout, build, data, indices, initial)

    def reference(d, i, v):
        i = np.broadcast_to(i[..., None], d.shape) if vector else i
        return np.stack([scattered(d[g], i[g], reduction, 0, 5, v[g]) for g in range(2)])

    expected = by_replica(layout, reference, [data, indices, initial])
    assert_rounded(got, expected, popxl.float32, 2, scale=3)


def test_sums_of_halves_are_made_in_float32():
    data, index = np.full(4096, 1, np.float16), np.zeros(4096, np.int32)
    (got,) = run_program(lambda d, i: ops.scatter_reduce(d, i, "sum", axis_size=1), data, index)
    assert got == 4096


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_out_of_range_is_an_error(index):
    indices = np.array([0, index], np.int32)
    with pytest.raises(IndexError, match=f"scatter_reduce: index {index} is outside .* size 4"):
        run_program(
            lambda d, i: ops.scatter_reduce(d, i, "sum", axis_size=4), np.ones(2, "f"), indices
        )


# --- gathers ---


@pytest.mark.parametrize("dtype", [popxl.float32, popxl.uint32, popxl.int8], ids=str)
@pytest.mark.parametrize("axis", [1, 2, -1])
@in_turn("layout", LAYOUTS)
def test_every_group_is_picked_from_by_its_own_indices(layout, axis, dtype, rng):
    x = numbers(rng, (2, 3, 4), dtype, 0, 100)
    indices = [rng.integers(0, 3, (2, 5, 2)).astype(np.int32) for _ in range(4)]
    (got,) = run_on_layout(layout, lambda x, i: ops.groupedgather(x, i, axis, 2), x, indices)

    def reference(x, i):
        along = axis - 1 if axis > 0 else axis
        return np.stack([np.take(x[g], i[g], along) for g in range(2)])

    np.testing.assert_array_equal(got, by_replica(layout, reference, [x, indices]))


def test_indices_of_groups_out_of_range(rng):
    x = numbers(rng, (2, 3, 4), popxl.float32)[0]
    indices = np.array([[0, -1], [3, 2]], np.int32)
    (got,) = run_program(lambda x, i: ops.groupedgather(x, i, 1, 2, zero_OOR=True), x, indices)
    expected = np.stack([x[0][[0, 0]], x[1][[0, 2]]])
    expected[0, 1] = expected[1, 0] = 0
    np.testing.assert_array_equal(got, expected)
    with pytest.raises(IndexError, match="gather: index -1 is outside the axis of size 3"):
        run_program(lambda x, i: ops.groupedgather(x, i, 1, 2), x, indices)


def test_one_group_is_a_plain_gather(rng):
    x = numbers(rng, (4, 3), popxl.float32)[0]
    indices = np.array([[2, 0], [1, 9]], np.int32)
    for got in run_program(
        lambda x, i: (
            ops.groupedgather(x, i, 0, 1, zero_OOR=True),
            ops.groupedgather(x, i, group_size=None, zero_OOR=True),
            ops.tied_gather(x, i, zero_OOR=True),
        ),
        x, indices,
    ):  # fmt: skip
        expected = x[np.minimum(indices, 3)]
        expected[1, 1] = 0
        np.testing.assert_array_equal(got, expected)
