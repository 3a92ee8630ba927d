"""Ops that work element by element, against numpy in float64."""

from __future__ import annotations

import math

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

SHAPES = [(), (5,), (2, 3), (2, 1, 3)]


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _geluerf(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)))


FLOAT_UNARY = {
    "cos": np.cos,
    "sin": np.sin,
    "exp": np.exp,
    "tanh": np.tanh,
    "gelu": _gelu,
    "geluerf": _geluerf,
    "swish": lambda x: x / (1 + np.exp(-x)),
}
NUMBER_UNARY = {
    "abs": np.abs,
    "sign": np.sign,
    "ceil": np.ceil,
    "floor": np.floor,
    "relu": lambda x: np.maximum(x, 0),
}
BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "fmod": np.fmod,
    "maximum": np.maximum,
}
COMPARISONS = {"equal": np.equal, "greater": np.greater}
LOGIC = {"logical_and": np.logical_and, "logical_or": np.logical_or}


def wide(reference):
    """`reference` computed in float64."""
    return lambda *xs: np.asarray(reference(*(x.astype(np.float64) for x in xs)))


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", FLOAT_UNARY)
def test_functions_of_one_float(name, dtype, layout, rng):
    x = numbers(rng, (2, 7), dtype)
    (got,) = run_on_layout(layout, getattr(ops, name), x)
    # The tail of gelu is a difference of terms as large as x.
    scale = 3 if name in ("gelu", "geluerf") and dtype == popxl.float32 else 2**-6
    assert_rounded(got, by_replica(layout, wide(FLOAT_UNARY[name]), [x]), dtype, 4, scale)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ["log", "sqrt"])
def test_functions_of_a_positive_float(name, dtype, rng):
    x = numbers(rng, (3, 5), dtype, 0.1, 50)
    (got,) = run_on_layout("all replicas differ", getattr(ops, name), x)
    expected = by_replica("all replicas differ", wide(getattr(np, name)), [x])
    assert_rounded(got, expected, dtype, 2)


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
@pytest.mark.parametrize("name", NUMBER_UNARY)
def test_functions_of_one_number(name, dtype, layout, rng):
    x = numbers(rng, (3, 4), dtype, -9, 9)
    (got,) = run_on_layout(layout, getattr(ops, name), x)
    assert_rounded(got, by_replica(layout, wide(NUMBER_UNARY[name]), [x]), dtype, 0)


@pytest.mark.parametrize("dtype", [*FLOATS, popxl.int8, popxl.int32], ids=str)
def test_negate(dtype, rng):
    x = numbers(rng, (3, 4), dtype, -9, 9)
    (got,) = run_on_layout("all replicas differ", ops.negate, x)
    assert_rounded(got, -np.stack(x), dtype, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_kept(shape, rng):
    x = numbers(rng, shape, popxl.float32)
    (got,) = run_on_layout("all replicas differ", ops.tanh, x)
    assert_rounded(got, np.tanh(np.stack(x)), popxl.float32, 4)


@pytest.mark.parametrize("name", ["isnan", "isinf", "isfinite"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_kinds_of_floats(name, dtype):
    x = np.array([0, -1.5, np.inf, -np.inf, np.nan]).astype(dtype.as_numpy())
    (got,) = run_program(getattr(ops, name), x)
    np.testing.assert_array_equal(got, getattr(np, name)(x.astype(np.float32)))
    assert got.dtype == bool


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two_numbers(name, dtype, layout, rng):
    x, y = numbers(rng, (3, 4), dtype, 4, 9), numbers(rng, (3, 4), dtype, 1, 4)
    (got,) = run_on_layout(layout, getattr(ops, name), x, y)
    assert_rounded(got, by_replica(layout, wide(BINARY[name]), [x, y]), dtype, 0.5)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_division_of_floats(dtype, rng):
    x, y = numbers(rng, (3, 4), dtype), numbers(rng, (3, 4), dtype, 1, 4)
    (got,) = run_on_layout("all replicas differ", ops.div, x, y)
    assert_rounded(got, by_replica("all replicas differ", wide(np.divide), [x, y]), dtype, 0.5)


@pytest.mark.parametrize("dtype", [popxl.int8, popxl.int32, popxl.uint32], ids=str)
def test_division_of_integers_is_towards_zero(dtype):
    x = np.array([7, -7, 6, -6] if dtype.is_signed else [7, 8, 6, 0], dtype.as_numpy())
    y = np.array([2, 2, -4, -4] if dtype.is_signed else [2, 3, 4, 9], dtype.as_numpy())
    (got,) = run_program(ops.div, x, y)
    np.testing.assert_array_equal(got, np.trunc(x / y).astype(dtype.as_numpy()))


def test_fmod_has_the_sign_of_the_dividend():
    x, y = np.array([7, -7, 7, -7], np.int32), np.array([3, 3, -3, -3], np.int32)
    (got,) = run_program(lambda x, y: x % y, x, y)
    np.testing.assert_array_equal(got, [1, -1, 1, -1])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_power(dtype, rng):
    x, e = numbers(rng, (2, 3), dtype, 0.5, 2), numbers(rng, (3,), dtype)
    got, square = run_on_layout(
        "all replicas differ", lambda x, e: (ops.pow(x, e), ops.pow(x, 2)), x, e
    )
    expected = by_replica("all replicas differ", wide(np.power), [x, e])
    assert_rounded(got, expected, dtype, 4)
    assert_rounded(square, np.stack(x).astype(np.float64) ** 2, dtype, 1)


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_comparisons(name, dtype, layout, rng):
    x, y = numbers(rng, (2, 20), dtype, 0, 3), numbers(rng, (20,), dtype, 0, 3)
    x, y = ([np.floor(v.astype(np.float32)).astype(dtype.as_numpy()) for v in a] for a in (x, y))
    (got,) = run_on_layout(layout, getattr(ops, name), x, y)
    assert_rounded(got, by_replica(layout, COMPARISONS[name], [x, y]), popxl.bool)


def test_booleans_can_be_compared():
    x, y = np.array([True, True, False]), np.array([True, False, False])
    np.testing.assert_array_equal(run_program(ops.equal, x, y)[0], x == y)


@pytest.mark.parametrize("name", LOGIC)
@pytest.mark.parametrize("dtype", [popxl.bool, popxl.int32, popxl.float16], ids=str)
def test_logic_takes_numbers_for_true_where_they_are_not_zero(name, dtype):
    x = np.array([0, 0, 2, 1]).astype(dtype.as_numpy())
    y = np.array([False, True, False, True])
    (got,) = run_program(getattr(ops, name), x, y)
    np.testing.assert_array_equal(got, LOGIC[name](x.astype(bool), y))
    assert got.dtype == bool


@pytest.mark.parametrize("dtype", [popxl.bool, popxl.int32, popxl.float32], ids=str)
def test_logical_not(dtype):
    x = np.array([0, 1, 3]).astype(dtype.as_numpy())
    got, operator = run_program(lambda x: (ops.logical_not(x), ~x), x)
    np.testing.assert_array_equal(got, [True, False, False])
    np.testing.assert_array_equal(operator, got)


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shapes", [((2, 3), ()), ((3,), (2, 3)), ((2, 1), (1, 3)), ((4, 1, 3), (2, 1))], ids=str
)
def test_shapes_broadcast_as_numpys(shapes, layout, rng):
    x, y = (numbers(rng, shape, popxl.float32) for shape in shapes)
    (got,) = run_on_layout(layout, ops.add, x, y)
    np.testing.assert_array_equal(got, by_replica(layout, np.add, [x, y]))


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, popxl.int32, popxl.uint32, popxl.bool], ids=str)
def test_where(dtype, layout, rng):
    conditions = [c > 0 for c in numbers(rng, (4, 1), popxl.float32)]
    x, y = numbers(rng, (4, 3), dtype, 0, 2), numbers(rng, (3,), dtype, 0, 2)
    (got,) = run_on_layout(layout, ops.where, conditions, x, y)
    np.testing.assert_array_equal(got, by_replica(layout, np.where, [conditions, x, y]))
    assert got.dtype == dtype.as_numpy()


def test_where_takes_numbers():
    condition = np.array([True, False])
    x = np.array([1.5, 2.5], np.float32)
    (got,) = run_program(lambda c, x: ops.where(c, x, -1), condition, x)
    np.testing.assert_array_equal(got, [1.5, -1])


def test_maximum_of_any_number_of_tensors(rng):
    x, y, z = (v[0] for v in (numbers(rng, (6,), popxl.int32, -50, 50) for _ in range(3)))
    alone, all_three = run_program(lambda *t: (ops.maximum(t[0]), ops.maximum(*t)), x, y, z)
    np.testing.assert_array_equal(alone, x)
    np.testing.assert_array_equal(all_three, np.maximum(np.maximum(x, y), z))


@pytest.mark.parametrize("dtype", [*FLOATS, popxl.int32], ids=str)
def test_clip(dtype, rng):
    x = numbers(rng, (30,), dtype, -9, 9)[0]
    both, low, high, none = run_program(
        lambda x: (ops.clip(x, -2, 3), ops.clip(x, min=1), ops.clip(x, max=1), ops.clip(x)), x
    )
    numbers_of = x.astype(np.float64)
    for got, expected in [
        (both, np.clip(numbers_of, -2, 3)),
        (low, np.maximum(numbers_of, 1)),
        (high, np.minimum(numbers_of, 1)),
        (none, numbers_of),
    ]:
        assert_rounded(got, expected, dtype, 0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@in_turn("layout", LAYOUTS)
def test_scaled_add(dtype, layout, rng):
    x, y = numbers(rng, (2, 3), dtype, 1, 2), numbers(rng, (3,), dtype, 1, 2)
    a = numbers(rng, (1,), dtype, 1, 2)
    default, scaled = run_on_layout(
        layout,
        lambda x, y, a: (ops.scaled_add(x, y), ops.scaled_add(x, y, a=a, b=0.5)),
        x,
        y,
        a,
    )
    assert_rounded(default, by_replica(layout, wide(np.add), [x, y]), dtype, 1)
    expected = by_replica(layout, wide(lambda x, y, a: a * x + 0.5 * y), [x, y, a])
    assert_rounded(scaled, expected, dtype, 2)


@pytest.mark.parametrize("dtype", [popxl.int32, popxl.uint32, popxl.float32], ids=str)
def test_increment_mod(dtype):
    x = np.array([0, 1, 2, 3]).astype(dtype.as_numpy())
    (got,) = run_program(lambda x: ops.increment_mod(x, 3, 5), x)
    np.testing.assert_array_equal(got, (x + 3) % 5)
    assert got.dtype == dtype.as_numpy()


CAST_TYPES = [popxl.bool, popxl.int8, popxl.uint8, popxl.int32, popxl.uint32, *FLOATS]


@pytest.mark.parametrize("source", CAST_TYPES, ids=str)
@pytest.mark.parametrize("target", CAST_TYPES, ids=str)
def test_cast_between_any_two_types(source, target):
    x = np.array([0, 1, 3, 100.75]).astype(source.as_numpy())
    (got,) = run_program(lambda x: ops.cast(x, target), x)
    assert got.dtype == target.as_numpy()
    exact = x.astype(np.float32)
    np.testing.assert_array_equal(got, exact.astype(target.as_numpy()))


def test_numbers_take_the_dtype_of_the_tensor():
    x = np.array([1, 2], np.float16)
    for got in run_program(lambda x: (x + 1, 1 - x, 2.0 * x, x / 2, 1 / x, -x, x % 2), x):
        assert got.dtype == np.float16


def test_operators_are_the_ops():
    x, y = np.array([5.0, -3.0], np.float32), np.array([2.0, 4.0], np.float32)
    results = run_program(
        lambda x, y: (x + y, x - y, x * y, x / y, x % y, -x, 3 + x, 3 - x, 3 * x, 3 / x), x, y
    )
    expected = [x + y, x - y, x * y, x / y, np.fmod(x, y), -x, 3 + x, 3 - x, 3 * x, 3 / x]
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_numpys_numbers_and_arrays_are_operands():
    x = np.array([5.0, -3.0], np.float32)
    y = np.array([2.0, 4.0])
    results = run_program(lambda x: (y + x, x - y, np.float32(2) * x, np.int64(3) / x), x)
    for got, want in zip(results, [y + x, x - y, 2 * x, 3 / x], strict=True):
        np.testing.assert_array_equal(got, want.astype(np.float32))


def test_logical_operators_are_the_ops():
    x, y = np.array([True, True, False]), np.array([True, False, False])
    both, either = run_program(lambda x, y: (x & y, x | y), x, y)
    np.testing.assert_array_equal(both, x & y)
    np.testing.assert_array_equal(either, x | y)
