"""Ops are computed at once only where that cannot change what the program means."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl.ops.collectives import replicated_all_reduce
from popxl_torch.fusion.groups import Fusion
from programs import run_program

SIZE = 8


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def call(fn: Callable, *tensors: popxl.Tensor) -> popxl.Tensor:
    return ops.call(popxl.gir().create_graph(fn, *tensors), *tensors)[0]


def repeat(fn: Callable, x: popxl.Tensor, *rest: popxl.Tensor) -> popxl.Tensor:
    return ops.repeat(popxl.gir().create_graph(fn, x, *rest), 2, x, *rest)[0]


def two(x, a, b):
    return x @ a + x @ b


SUMS: dict[str, tuple[Callable, Callable]] = {
    "of two products": (lambda x, a, b, c: x @ a + x @ b, lambda x, a, b, c: x @ a + x @ b),
    "of one product twice": (lambda x, a, b, c: (y := x @ a) + y, lambda x, a, b, c: 2 * (x @ a)),
    "with gelu of one": (
        lambda x, a, b, c: ops.gelu(x @ a) + x @ b,
        lambda x, a, b, c: gelu(x @ a) + x @ b,
    ),
    "of three products": (
        lambda x, a, b, c: (x @ a + x @ b) + x @ c,
        lambda x, a, b, c: x @ a + x @ b + x @ c,
    ),
    "cast": (
        lambda x, a, b, c: ops.cast(ops.cast(x @ a + x @ b, popxl.float16), popxl.float32),
        lambda x, a, b, c: x @ a + x @ b,
    ),
    "under gelu": (
        lambda x, a, b, c: ops.gelu(x @ a + x @ b),
        lambda x, a, b, c: gelu(x @ a + x @ b),
    ),
    "used again": (
        lambda x, a, b, c: (y := x @ a + x @ b) + y @ c,
        lambda x, a, b, c: (y := x @ a + x @ b) + y @ c,
    ),
    "in a called graph": (
        lambda x, a, b, c: call(two, x, a, b) @ c,
        lambda x, a, b, c: (x @ a + x @ b) @ c,
    ),
    "in a loop": (
        lambda x, a, b, c: repeat(two, x, a, b),
        lambda x, a, b, c: two(two(x, a, b), a, b),
    ),
}


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("name", SUMS)
def test_sums_of_products(name, rows, rng):
    build, reference = SUMS[name]
    x, *weights = rng.standard_normal((4, SIZE, SIZE)).astype(np.float32) / 3
    x = np.resize(x, (rows, SIZE))
    (got,) = run_program(build, x, *weights)
    wide = [t.astype(np.float64) for t in (x, *weights)]
    tolerance = 2e-3 if name == "cast" else 1e-5
    np.testing.assert_allclose(got, reference(*wide), rtol=tolerance, atol=tolerance)


SUMS_OVER_REPLICAS: dict[str, tuple[Callable, Callable]] = {
    "one reduced": (
        lambda x, m, n: x @ m + replicated_all_reduce(x @ n),
        lambda x, m, n: x @ m + (x @ n).sum(0),
    ),
    "both reduced, and a residual": (
        lambda x, m, n: replicated_all_reduce(x @ m) + replicated_all_reduce(x @ n) + x,
        lambda x, m, n: (x @ m).sum(0) + (x @ n).sum(0) + x,
    ),
    "reduced together": (
        lambda x, m, n: replicated_all_reduce(x @ m + x @ n) + x,
        lambda x, m, n: (x @ m + x @ n).sum(0) + x,
    ),
}


@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("name", SUMS_OVER_REPLICAS)
def test_sums_of_products_over_replicas(name, replicas, rng):
    build, reference = SUMS_OVER_REPLICAS[name]
    arrays = rng.standard_normal((3, replicas, SIZE, SIZE)).astype(np.float32) / 3
    (got,) = run_program(build, *arrays, replicas=replicas)
    wide = reference(*arrays.astype(np.float64))
    np.testing.assert_allclose(got, np.broadcast_to(wide, got.shape), rtol=1e-5, atol=1e-5)


def test_a_slot_stored_by_a_called_graph_before_a_product_is_added_to(rng):
    """The product reads the slot as it was before the call."""
    w, new, x = rng.standard_normal((3, SIZE, SIZE)).astype(np.float32)
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((SIZE, SIZE), popxl.float32, 1)
        popxl.remote_variable(w, buffer)
        inputs = [popxl.variable(x), popxl.variable(new)]
        product = inputs[0] @ ops.remote_load(buffer, 0)
        store = ir.create_graph(lambda t: ops.remote_store(buffer, 0, t), inputs[1])
        ops.call(store, inputs[1])
        stream = popxl.d2h_stream((SIZE, SIZE), popxl.float32)
        ops.host_store(stream, product + inputs[0])
    with popxl.Session(ir) as session:
        np.testing.assert_allclose(session.run()[stream], x @ w + x, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(session.run()[stream], x @ new + x, rtol=1e-4, atol=1e-4)


def graph_of(build: Callable) -> popxl.Graph:
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((2, 2), popxl.float32, 1)
        spec = popxl.TensorSpec((2, 2), popxl.float32)
        return ir.create_graph(lambda x, y: build(x, y, buffer), spec, spec)


def negated_sum(x, y, buffer):
    return ops.negate(x + y)


def test_ops_in_a_row_are_allowed_and_taken_once():
    fusion = Fusion(graph := graph_of(negated_sum))
    add, negate = graph._ops
    assert fusion.allows([add, negate])
    assert not fusion.allows([negate, add])  # the last makes the result
    fusion.take([add, negate])
    assert not fusion.allows([add]) and not fusion.allows([negate])


NOT_ALLOWED: dict[str, Callable] = {
    "used elsewhere": lambda x, y, b: (ops.negate(s := x + y), s * y),
    "an output": lambda x, y, b: (s := x + y, ops.negate(s)),
    "written to between": lambda x, y, b: (s := x + y, ops.add_(x, y), ops.negate(s))[2],
    "a slot is stored between": lambda x, y, b: (
        s := x + y,
        ops.remote_store(b, 0, x),
        ops.negate(s),
    )[2],
    "a called graph stores between": lambda x, y, b: (
        s := x + y,
        ops.call(popxl.gir().create_graph(lambda t: ops.remote_store(b, 0, t), x), x),
        ops.negate(s),
    )[2],
    "in place": lambda x, y, b: ops.negate(ops.add_(x, y)),
    "seen through a view": lambda x, y, b: (s := x + y, v := s.reshape_((4,)), ops.negate(s), v)[
        2:
    ],
}


@pytest.mark.parametrize("name", NOT_ALLOWED)
def test_ops_are_not_computed_at_once_where_what_is_between_them_is(name):
    graph = graph_of(NOT_ALLOWED[name])
    (add,) = [
        op for op in graph._ops if op.kind == "add" and not (name != "in place" and op.modifies)
    ]
    (negate,) = [op for op in graph._ops if op.kind == "negate"]
    assert not Fusion(graph).allows([add, negate])
