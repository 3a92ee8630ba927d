"""Matrix products against numpy in float64, over ranks, dtypes and what replicas share."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
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

SHAPES = [
    ((4,), (4,)),
    ((4,), (4, 3)),
    ((2, 4), (4,)),
    ((2, 4), (4, 3)),
    ((5, 2, 4), (4, 3)),
    ((5, 2, 4), (5, 4, 3)),
    ((2, 4), (5, 4, 3)),
    ((4,), (5, 4, 3)),
    ((5, 2, 4), (4,)),
    ((5, 1, 2, 4), (6, 4, 3)),
]


def product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(np.matmul(x.astype(np.float64), y.astype(np.float64)))


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_shapes_and_layouts(shapes, dtype, layout, rng):
    x, y = (numbers(rng, shape, dtype) for shape in shapes)
    (got,) = run_on_layout(layout, ops.matmul, x, y)
    assert_rounded(got, by_replica(layout, product, [x, y]), dtype, 2, scale=8)


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [popxl.int32, popxl.int8, popxl.uint32], ids=str)
def test_integers(dtype, layout, rng):
    x, y = numbers(rng, (2, 3), dtype, -3, 4), numbers(rng, (3, 5), dtype, -3, 4)
    (got,) = run_on_layout(layout, ops.matmul, x, y)
    assert_rounded(got, by_replica(layout, product, [x, y]), dtype)


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 64])
@pytest.mark.parametrize("dtype", [popxl.float16, popxl.bfloat16], ids=str)
def test_half_types_add_up_in_float32(dtype, rows):
    """Sums of 4096 ones: in its own type float16 stops at 2048 and bfloat16 at 256."""
    x, y = np.ones((rows, 4096), dtype.as_numpy()), np.ones((4096, 8), dtype.as_numpy())
    (got,) = run_program(ops.matmul, x, y)
    np.testing.assert_array_equal(got.astype(np.float32), 4096)
    assert got.dtype == dtype.as_numpy()


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("dtype", [popxl.float16, popxl.bfloat16], ids=str)
def test_float32_output_keeps_what_half_types_would_round(dtype, rows, rng):
    x, y = numbers(rng, (rows, 40), dtype)[0], numbers(rng, (40, 3), dtype)[0]
    (got,) = run_program(lambda x, y: ops.matmul(x, y, output_type=popxl.float32), x, y)
    assert_rounded(got, product(x, y), popxl.float32, 8, scale=16)


def test_output_type_of_float32_operands(rng):
    x, y = numbers(rng, (2, 4), popxl.float32)[0], numbers(rng, (4, 3), popxl.float32)[0]
    (got,) = run_program(lambda x, y: ops.matmul(x, y, output_type=popxl.float16), x, y)
    assert_rounded(got, product(x, y), popxl.float16, 1, scale=2**-6)


def test_operator(rng):
    x, y = numbers(rng, (2, 4), popxl.float32)[0], numbers(rng, (4, 3), popxl.float32)[0]
    with_tensor, with_array, from_array = run_program(
        lambda x, y: (x @ y, x @ np.eye(4), np.eye(2) @ x), x, y
    )
    assert_rounded(with_tensor, product(x, y), popxl.float32, 8, scale=1)
    np.testing.assert_array_equal(with_array, x)
    np.testing.assert_array_equal(from_array, x)


def test_transposed_strides(rng):
    x, y = numbers(rng, (3, 8), popxl.float32)[0], numbers(rng, (5, 8), popxl.float32)[0]
    (got,) = run_program(lambda x, y: ops.matmul(x, y.T), x, y)
    assert_rounded(got, product(x, y.T), popxl.float32, 8, scale=2)
