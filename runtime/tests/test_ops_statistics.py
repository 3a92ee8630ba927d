"""Median, histogram, logarithms of sums and to base 2, and in-place functions of one tensor."""

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

AXES = [None, 0, -1, (0, 2), (1, 2), ()]


def lower_median(x: np.ndarray, axis, keepdims: bool) -> np.ndarray:
    """The middle of the sorted elements, of two the lower."""
    axes = tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(a % x.ndim for a in axes)
    kept = [a for a in range(x.ndim) if a not in axes]
    rows = np.sort(x.transpose(*kept, *axes).reshape(*(x.shape[a] for a in kept), -1), axis=-1)
    middle = rows[..., (rows.shape[-1] - 1) // 2]
    return np.expand_dims(middle, axes) if keepdims else middle


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_median(dtype, layout, rng):
    x = numbers(rng, (3, 4, 5), dtype, -50, 50)
    for axis in AXES:
        for keep in (False, True):
            (got,) = run_on_layout(layout, lambda x, a=axis, k=keep: ops.median(x, a, k), x)
            expected = by_replica(layout, lambda x, a=axis, k=keep: lower_median(x, a, k), [x])
            assert_rounded(got, expected, dtype, 0)


def test_median_of_an_even_number_is_torchs(rng):
    x = rng.standard_normal((4, 6)).astype(np.float32)
    (got,) = run_program(lambda x: ops.median(x, 1), x)
    np.testing.assert_array_equal(got, torch.from_numpy(x).median(1).values.numpy())


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_logarithm_of_a_sum(dtype, layout, rng):
    x = numbers(rng, (2, 3, 4), dtype, 0.5, 1.5)
    for axis in AXES:
        for keep in (False, True):
            (got,) = run_on_layout(layout, lambda x, a=axis, k=keep: ops.logsum(x, a, k), x)

            def reference(x, a=axis, k=keep):
                return np.log(np.sum(x.astype(np.float64), axis=a, keepdims=k))

            assert_rounded(got, by_replica(layout, reference, [x]), dtype, 4, scale=1)


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_logarithm_to_base_2(dtype, layout, rng):
    x = numbers(rng, (3, 5), dtype, 0.1, 50)
    (got,) = run_on_layout(layout, ops.log2, x)
    expected = by_replica(layout, lambda x: np.log2(x.astype(np.float64)), [x])
    assert_rounded(got, expected, dtype, 2, scale=0.1)


@pytest.mark.parametrize("shape", [(), (40,), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@in_turn("layout", LAYOUTS)
def test_histogram(layout, dtype, absolute, shape, rng):
    levels = [-1.5, 0, 1, 2.5]
    x = [np.round(v.astype(np.float32) * 2).astype(v.dtype) / 2 for v in numbers(rng, shape, dtype)]
    x = [np.asarray(v, dtype.as_numpy()) for v in x]
    (got,) = run_on_layout(layout, lambda x: ops.histogram(x, levels, absolute), x)

    def reference(x):
        values = np.abs(x.astype(np.float64)) if absolute else x.astype(np.float64)
        return np.histogram(values, [-np.inf, *levels, np.inf])[0].astype(np.uint32)

    np.testing.assert_array_equal(got, by_replica(layout, reference, [x]))
    assert got.dtype == np.uint32


def test_histogram_of_one_level_and_what_is_no_number():
    x = np.array([np.nan, -np.inf, np.inf, 2, 1], np.float32)
    (got,) = run_program(lambda x: ops.histogram(x, [2], False), x)
    np.testing.assert_array_equal(got, [2, 3])


# --- in place ---

UNARY = ["exp_", "gelu_", "geluerf_", "relu_", "swish_"]
TARGETS = ["stream", "variable", "view", "by reference"]


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_functions_in_place(name, dtype, layout, rng):
    """They give what the op of that name gives, to the tensor and to all that shares elements."""
    x = numbers(rng, (2, 3), dtype)
    write, op = getattr(ops, name), getattr(ops, name.removesuffix("_"))

    def inside(t: popxl.TensorByRef):
        write(t)

    def build(x):
        results = [op(x)]
        for kind in TARGETS:
            t = x + 0
            if kind == "variable":
                v = popxl.variable(np.zeros((2, 3), dtype.as_numpy()))
                t = ops.var_updates.copy_var_update_(v, t)
            if kind == "by reference":
                ops.call(popxl.gir().create_graph(inside, t), t)
            else:
                written = t.reshape_((3, 2)) if kind == "view" else t
                assert write(written) is written
            results.append(t)
        return results

    expected, *got = run_on_layout(layout, build, x)
    for one in got:
        # torch's gelu may differ in the last place between the layouts of its operand.
        assert_rounded(one, expected.astype(np.float64), dtype, 2, scale=3)


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, popxl.int32], ids=str)
def test_scaled_add_in_place(dtype, layout, rng):
    x, y = numbers(rng, (2, 3), dtype, 1, 9), numbers(rng, (3,), dtype, 1, 9)
    a = numbers(rng, (1,), dtype, 1, 4)

    def build(x, y, a):
        plain, scaled = x + 0, x + 0
        assert ops.scaled_add_(plain, y) is plain
        return plain, ops.scaled_add_(scaled, y, a, 2)

    plain, scaled = run_on_layout(layout, build, x, y, a)
    wide = np.int64 if dtype == popxl.int32 else np.float64

    def sums(a_of, b):
        return by_replica(
            layout, lambda x, y, a: a_of(a) * x.astype(wide) + b * y.astype(wide), [x, y, a]
        ).astype(np.int32 if dtype == popxl.int32 else np.float64)

    assert_rounded(plain, sums(lambda a: 1, 1), dtype, 1)
    assert_rounded(scaled, sums(lambda a: a.astype(wide), 2), dtype, 2)


# --- what has no effect ---


def test_loading_code_has_no_effect():
    def build(x):
        graph = popxl.gir().create_graph(lambda x: x + 1, x)
        for destination in ("executable", "compute_buffer", "io_buffer"):
            assert ops.remote_code_load(graph, destination) is None
        return ops.call(graph, x)

    np.testing.assert_array_equal(run_program(build, np.ones(2, "f"))[0], [2, 2])
