"""Ops along axes: against numpy in float64, half types to their own rounding."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
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

REDUCTIONS = {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
    "prod": np.prod,
    "sumsquare": lambda x, **axes: np.sum(x * x, **axes),
    "l1": lambda x, **axes: np.sum(np.abs(x), **axes),
    "l2": lambda x, **axes: np.sqrt(np.sum(x * x, **axes)),
    "logsumexp": lambda x, **axes: np.log(np.sum(np.exp(x), **axes)),
}
AXES = [None, 0, -1, (0, 2), ()]


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name, dtype, layout, rng):
    x = numbers(rng, (2, 3, 4), dtype, 0.5, 1.5)
    for axis in AXES:
        for keepdims in (False, True):

            def reference(x, axes=axis, keep=keepdims):
                return REDUCTIONS[name](x.astype(np.float64), axis=axes, keepdims=keep)

            (got,) = run_on_layout(
                layout, lambda x, a=axis, k=keepdims: getattr(ops, name)(x, a, k), x
            )
            assert_rounded(got, by_replica(layout, reference, [x]), dtype, 8, scale=0.1)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("name", ["sum", "max", "min", "prod", "sumsquare", "l1"])
def test_reductions_of_integers(name, dtype, rng):
    x = numbers(rng, (2, 3), dtype, -3, 3)
    (got,) = run_on_layout("all replicas differ", lambda x: getattr(ops, name)(x, 1), x)
    expected = by_replica("all replicas differ", lambda x: REDUCTIONS[name](x, axis=1), [x])
    np.testing.assert_array_equal(got, expected.astype(dtype.as_numpy()))
    assert got.dtype == dtype.as_numpy()


@pytest.mark.parametrize("dtype", [popxl.int32, popxl.uint32, popxl.int8], ids=str)
def test_mean_of_integers_is_towards_zero(dtype):
    x = np.array([[1, 2], [100, 101]]).astype(dtype.as_numpy())
    x = -x if dtype.is_signed else x
    (got,) = run_program(lambda x: ops.mean(x, 1), x)
    np.testing.assert_array_equal(got, np.trunc(x.astype(float).mean(1)))
    assert got.dtype == dtype.as_numpy()


@pytest.mark.parametrize("dtype", [popxl.float16, popxl.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["sum", "mean", "cumsum"])
def test_half_types_add_up_in_float32(name, dtype):
    """In its own type the sum stops growing at 2048 (float16) or 256 (bfloat16)."""
    x = np.ones(4096, dtype.as_numpy())
    build = {"sum": ops.sum, "mean": ops.mean, "cumsum": lambda x: ops.cumsum(x)[-1]}[name]
    (got,) = run_program(build, x)
    assert float(got) == (1 if name == "mean" else 4096)


@pytest.mark.parametrize("dtype", [popxl.float16, popxl.bfloat16], ids=str)
def test_squares_of_half_types_add_up_in_float32(dtype):
    """A square of 2^10 is beyond float16, its sum over tiny ones is not."""
    x = np.full(4096, 0.25, dtype.as_numpy())
    (got,) = run_program(ops.sumsquare, x)
    assert float(got) == 256


def test_norms_are_of_magnitudes(rng):
    x = numbers(rng, (3, 4), popxl.float32)[0]
    sums, roots, signs = run_program(lambda x: (ops.l1(x, 1), ops.l2(x, [0, -1]), ops.l1(x, ())), x)
    np.testing.assert_allclose(sums, np.linalg.norm(x, 1, axis=1), rtol=1e-6)
    np.testing.assert_allclose(roots, np.linalg.norm(x), rtol=1e-6)
    np.testing.assert_array_equal(signs, np.abs(x))


def test_a_scalar_can_be_reduced():
    x = np.array(3, np.float32)
    results = run_program(lambda x: [getattr(ops, name)(x) for name in REDUCTIONS], x)
    np.testing.assert_allclose(results, [3, 3, 3, 3, 3, 9, 3, 3, 3])


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, popxl.int32, popxl.uint32], ids=str)
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_arg_of_the_extreme_is_the_first(name, dtype, layout, rng):
    x = numbers(rng, (3, 6), popxl.int32, 0, 4)
    x = [v.astype(dtype.as_numpy()) for v in x]
    along, kept = run_on_layout(
        layout, lambda x: (getattr(ops, name)(x, 1), getattr(ops, name)(x, -2, keepdim=True)), x
    )
    reference = getattr(np, name)
    assert_rounded(
        along,
        by_replica(layout, lambda x: reference(x.astype(float), axis=1), [x]),
        popxl.int32,
    )
    expected = by_replica(layout, lambda x: reference(x.astype(float), axis=0, keepdims=True), [x])
    assert_rounded(kept, expected, popxl.int32)


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("dtype", [*FLOATS, popxl.int32], ids=str)
def test_topk(dtype, largest, layout, rng):
    order = [rng.permutation(24).reshape(4, 6) for _ in range(4)]
    x = [o.astype(dtype.as_numpy()) for o in order]
    values, indices = run_on_layout(
        layout, lambda x: ops.topk(x, 3, axis=-1, largest=largest, sorted=True), x
    )

    def best(x):
        found = np.argsort(x.astype(float), axis=-1)
        return (found[:, ::-1] if largest else found)[:, :3]

    np.testing.assert_array_equal(indices, by_replica(layout, best, [x]))
    expected = by_replica(layout, lambda x: np.take_along_axis(x, best(x), -1), [x])
    assert_rounded(values, expected, dtype, 0)
    assert indices.dtype == np.int32


def test_topk_unsorted_has_the_same_elements(rng):
    x = rng.permutation(20).astype(np.float32).reshape(20, 1)
    values, indices = run_program(lambda x: ops.topk(x, 5, 0, largest=True, sorted=False), x)
    assert set(values.ravel()) == {15, 16, 17, 18, 19}
    np.testing.assert_array_equal(x[indices.ravel()], values)


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, popxl.int32, popxl.uint32], ids=str)
@pytest.mark.parametrize("dim", [0, -1])
def test_cumsum(dim, dtype, layout, rng):
    x = numbers(rng, (3, 5), dtype, 1, 4)
    (got,) = run_on_layout(layout, lambda x: ops.cumsum(x, dim), x)
    reference = by_replica(layout, lambda x: np.cumsum(x.astype(np.float64), dim), [x])
    assert_rounded(got, reference, dtype, 1)


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("axis", [0, -1])
def test_softmax(axis, dtype, layout, rng):
    x = numbers(rng, (3, 5), dtype)

    def reference(x):
        powers = np.exp(x.astype(np.float64))
        return powers / powers.sum(axis, keepdims=True)

    (got,) = run_on_layout(layout, lambda x: ops.softmax(x, axis), x)
    assert_rounded(got, by_replica(layout, reference, [x]), dtype, 4)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_softmax_of_large_and_masked_scores(dtype):
    x = np.array([20000, 20000, -np.inf]).astype(dtype.as_numpy())
    (got,) = run_program(lambda x: ops.softmax(x, 0), x)
    np.testing.assert_array_equal(got.astype(np.float32), [0.5, 0.5, 0])
