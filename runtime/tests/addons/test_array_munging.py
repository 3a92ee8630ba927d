"""Sharding and its inverses, held against indexing of the whole array."""

import numpy as np
import pytest
from popxl_addons.array_munging import (
    handle_negative_axis,
    pad_axis,
    repeat,
    repeat_axis,
    repeat_shard,
    shard,
    shard2D,
    split2D,
    squeeze_safe,
    tensor_parallel_input,
    tensor_parallel_output,
    unshard,
    unshard2D,
    unshard_arrays,
)


@pytest.fixture
def x():
    return np.arange(4 * 6 * 2).reshape(4, 6, 2)


@pytest.mark.parametrize("axis", [1, -2])
def test_shard_stacks_equal_parts_of_the_axis(x, axis):
    parts = shard(x, 3, axis)

    assert parts.shape == (3, 4, 2, 2)
    for i in range(3):
        np.testing.assert_array_equal(parts[i], x[:, 2 * i : 2 * i + 2])


def test_shard_in_one_is_a_view_of_the_array(x):
    assert np.shares_memory(shard(x, 1, 0), x)


def test_shard_keeps_the_order_of_bytes_in_memory():
    weight = np.asfortranarray(np.ones((8, 6)))

    parts = shard(weight, 2, 0)

    assert parts.strides[1] < parts.strides[2], "columns should stay contiguous"


@pytest.mark.parametrize("n", [0, 4, 7])
def test_shard_refuses_parts_that_are_not_equal(x, n):
    with pytest.raises(ValueError, match=rf"axis 1 of \(4, 6, 2\).*{n} equal parts"):
        shard(x, n, 1)


@pytest.mark.parametrize(("n", "axis"), [(2, 0), (3, 1), (2, 2), (6, -2), (1, 0)])
def test_unshard_undoes_shard(x, n, axis):
    np.testing.assert_array_equal(unshard(shard(x, n, axis), axis), x)
    parts = np.split(shard(x, n, axis), n)
    np.testing.assert_array_equal(unshard_arrays(parts, axis), x)


def test_unshard_arrays_names_the_shapes_that_do_not_go_together():
    with pytest.raises(ValueError, match=r"\(1, 2\), \(1, 2, 3\)"):
        unshard_arrays([np.zeros((1, 2)), np.zeros((1, 2, 3))], 0)


@pytest.mark.parametrize(("axis_1", "axis_2"), [(0, 1), (1, 0), (-1, -2)])
def test_shard2d_numbers_parts_with_the_first_axis_outermost(axis_1, axis_2):
    x = np.arange(4 * 6).reshape(4, 6)

    parts = shard2D(x, 2, 2, axis_1, axis_2)

    for i_1 in range(2):
        for i_2 in range(2):
            whole = [slice(None), slice(None)]
            for axis, i in ((axis_1, i_1), (axis_2, i_2)):
                half = x.shape[axis] // 2
                whole[axis] = slice(i * half, (i + 1) * half)
            np.testing.assert_array_equal(parts[i_1 * 2 + i_2], x[tuple(whole)])
            np.testing.assert_array_equal(
                split2D(x, 2, 2, axis_1, axis_2)[i_1][i_2], x[tuple(whole)]
            )


@pytest.mark.parametrize(("n_1", "n_2"), [(4, 3), (2, 6), (1, 2), (1, 1)])
def test_unshard2d_undoes_shard2d(x, n_1, n_2):
    np.testing.assert_array_equal(unshard2D(shard2D(x, n_1, n_2, 0, 1), n_1, n_2, 0, 1), x)


def test_unshard2d_says_how_many_shards_it_needs():
    with pytest.raises(ValueError, match="first axis of 6"):
        unshard2D(np.zeros((4, 2, 2)), 2, 3, 0, 1)


def test_repeat_makes_a_new_axis_and_repeat_axis_lengthens_one(x):
    assert repeat(x, 3, 1).shape == (4, 3, 6, 2)
    np.testing.assert_array_equal(repeat(x, 3, 1)[:, 2], x)
    np.testing.assert_array_equal(repeat_axis(x, 3, 1), np.tile(x, (1, 3, 1)))


def test_repeat_shard_puts_shards_or_copies_next_to_each_other():
    x = np.arange(4)

    assert repeat_shard(x, 2, 2, 0).tolist() == [[0, 1], [2, 3], [0, 1], [2, 3]]
    assert repeat_shard(x, 2, 2, 0, "strided").tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]
    with pytest.raises(ValueError, match="'contiguous' or 'strided', got 'scattered'"):
        repeat_shard(x, 2, 2, 0, "scattered")


@pytest.mark.parametrize(
    ("tp", "rf", "expected"),
    [
        (1, 2, [[0, 1], [2, 3]]),
        (2, 2, [[0, 0], [1, 1], [2, 2], [3, 3]]),
        (2, 4, [[0, 0, 1, 1], [2, 2, 3, 3]]),
        (4, 4, [[0] * 4, [1] * 4, [2] * 4, [3] * 4]),
        (1, 4, [0, 1, 2, 3]),
        (1, 1, [0, 1, 2, 3]),
    ],
)
def test_tensor_parallel_input_gives_neighbours_the_same_sample(tp, rf, expected):
    assert tensor_parallel_input(np.arange(4), tp, rf).tolist() == expected


def test_tensor_parallel_input_changes_what_each_replica_gets():
    shifted = tensor_parallel_input(np.arange(4), 2, 2, lambda data, i: data - 10 * i)

    assert shifted.tolist() == [[0, -10], [1, -9], [2, -8], [3, -7]]


@pytest.mark.parametrize(("tp", "rf"), [(3, 4), (4, 2), (0, 2)])
def test_tensor_parallel_input_refuses_replicas_that_do_not_divide(tp, rf):
    with pytest.raises(ValueError, match=f"tp = {tp}.*rf = {rf}"):
        tensor_parallel_input(np.arange(4), tp, rf)


def test_tensor_parallel_input_refuses_samples_that_leave_replicas_idle():
    with pytest.raises(ValueError, match="3 samples cannot be dealt to 2 groups of 2"):
        tensor_parallel_input(np.arange(3), 2, 4)


@pytest.mark.parametrize(("tp", "rf"), [(1, 1), (1, 2), (2, 2), (2, 4), (4, 4)])
def test_tensor_parallel_output_gives_the_samples_of_the_input_back(tp, rf):
    samples = np.arange(4 * 3).reshape(4, 3)
    transfers = 4 * tp // rf

    laid_out = tensor_parallel_input(samples, tp, rf)

    np.testing.assert_array_equal(
        tensor_parallel_output(laid_out, transfers, tp, rf, (3,)), samples
    )
    every_copy = tensor_parallel_output(laid_out, transfers, tp, rf, (3,), tp_identical=False)
    np.testing.assert_array_equal(every_copy, np.repeat(samples[:, None], tp, axis=1))


def test_tensor_parallel_output_leaves_out_transfers_without_data():
    data = np.arange(6).reshape(3, 2)

    assert tensor_parallel_output(data, 3, 1, 2, (), True, 2).tolist() == [0, 1, 2, 3]


def test_pad_axis_adds_values_at_the_end(x):
    padded = pad_axis(x, 8, -2, -1)

    np.testing.assert_array_equal(padded[:, :6], x)
    assert padded.shape == (4, 8, 2)
    assert (padded[:, 6:] == -1).all()
    with pytest.raises(ValueError, match="longer than 5"):
        pad_axis(x, 5, 1)


def test_squeeze_safe_leaves_axes_longer_than_one():
    x = np.zeros((1, 2, 1, 3))

    assert squeeze_safe(x).shape == (2, 3)
    assert squeeze_safe(x, [0, 1]).shape == (2, 1, 3)
    assert squeeze_safe(x, -2).shape == (1, 2, 3)


def test_axes_out_of_range_are_refused():
    assert handle_negative_axis(np.zeros((2, 3)), -1) == 1
    for axis in (2, -3):
        with pytest.raises(IndexError, match=f"axis {axis}.*2 dimensions"):
            handle_negative_axis(np.zeros((2, 3)), axis)
    with pytest.raises(IndexError, match="0 dimensions"):
        handle_negative_axis(np.zeros(()), 0)
