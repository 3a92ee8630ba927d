"""Weights that lie `(in, out)`, as PopXL programs have them: the native kernels read them so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_torch.backends.cpu.instructions import LINEAR
from popxl_torch.backends.cpu.library import observer
from programs import FLOATS, assert_rounded, numbers, store

pytestmark = pytest.mark.usefixtures("two_threads")
SIZE, OUTPUTS = 96, 80


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """Collects the kinds of the native instructions that are done."""
    kinds: list[int] = []
    token = observer.set(lambda kind, fields, result: kinds.append(kind))
    try:
        yield kinds
    finally:
        observer.reset(token)


def outputs_of(build, x: np.ndarray, replicas: int = 1) -> tuple[list[np.ndarray], int]:
    """What a program makes of x in two runs, and how many products were native in the first."""
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph:
        stream = popxl.h2d_stream(x.shape, popxl.dtype.as_dtype(x.dtype))
        (out,) = store([build(ops.host_load(stream))])
    given = np.stack([x] * replicas) if replicas > 1 else x
    with popxl.Session(ir) as session:
        with counted() as kinds:
            first = session.run({stream: given})[out]
        return [first, session.run({stream: given})[out]], kinds.count(LINEAR)


@pytest.fixture
def arrays(rng, request) -> tuple[np.ndarray, np.ndarray]:
    dtype = request.getfixturevalue("dtype")
    x, w = (numbers(rng, s, dtype, -1, 1, 1)[0] for s in ((3, SIZE), (SIZE, OUTPUTS)))
    return x, w


def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ w.astype(np.float64)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["variable", "mapped", "read-only map", "turned", "remote"])
def test_variables(kind, dtype, arrays, tmp_path: Path):
    x, w = arrays
    if "map" in kind:
        file = np.memmap(tmp_path / "w", w.dtype, "w+", shape=w.shape)
        file[:] = w
        file.flush()
        given = np.memmap(tmp_path / "w", w.dtype, "r" if "read" in kind else "r+", shape=w.shape)
    else:
        given = np.ascontiguousarray(w.T).T if kind == "turned" else w

    def build(x):
        if kind != "remote":
            return x @ popxl.variable(given)
        buffer = popxl.remote_buffer(w.shape, dtype, 2)
        popxl.remote_variable(given, buffer, 1)
        return x @ ops.remote_load(buffer, 1)

    for got in (results := outputs_of(build, x))[0]:
        assert_rounded(got, product(x, w), dtype, 2, scale=10)
    assert results[1] == 1


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 13])
def test_any_number_of_rows(rows, dtype, rng):
    x, w = (numbers(rng, s, dtype, -1, 1, 1)[0] for s in ((rows, SIZE), (SIZE, OUTPUTS)))
    got, native = outputs_of(lambda x: x @ popxl.variable(w), x)
    for result in got:
        assert_rounded(result, product(x, w), dtype, 2, scale=10)
    assert native == 1


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_variable_that_is_written_in_place(dtype, arrays):
    x, w = arrays

    def build(x):
        weight = popxl.variable(w)
        before = x @ weight
        ops.add_(weight, popxl.constant(1, dtype))
        return x @ weight + before

    for run, got in enumerate(outputs_of(build, x)[0]):
        one = w.dtype.type(1)
        changed = [w]
        for _ in range(run + 1):
            changed.append(changed[-1] + one)
        expected = product(x, changed[-1]) + product(x, changed[-2])
        assert_rounded(got, expected, dtype, 4, scale=100)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "build",
    {
        "a half": lambda x, w: x @ ops.split(w, 2, axis=-1)[1],
        "a slice": lambda x, w: x @ w[:, OUTPUTS // 2 :],
        "turned twice": lambda x, w: x @ w.transpose((1, 0)).transpose((1, 0))[:, OUTPUTS // 2 :],
        "in a call": lambda x, w: ops.call(
            popxl.gir().create_graph(lambda x, w: x @ w[:, OUTPUTS // 2 :], x, w), x, w
        )[0],
    }.items(),
    ids=lambda item: item[0],
)
def test_parts_of_a_weight(build, dtype, arrays):
    x, w = arrays
    results, native = outputs_of(lambda x: build[1](x, popxl.variable(w)), x)
    for got in results:
        assert_rounded(got, product(x, w[:, OUTPUTS // 2 :]), dtype, 2, scale=10)
    assert native == 1


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("summed", [False, True])
def test_weights_of_several_replicas(summed, dtype, rng):
    x = numbers(rng, (3, SIZE), dtype, -1, 1, 1)[0]
    w = np.stack(numbers(rng, (SIZE, OUTPUTS), dtype, -1, 1, 4))

    def build(x):
        grouping = popxl.gir().replica_grouping(group_size=1)
        y = x @ popxl.variable(w, replica_grouping=grouping)
        return ops.collectives.replicated_all_reduce(y, "add") if summed else y

    results, native = outputs_of(build, x, replicas=4)
    expected = np.stack([product(x, one) for one in w])
    if summed:
        expected = np.broadcast_to(expected.sum(0), expected.shape)
    for got in results:
        assert_rounded(got, expected, dtype, 4, scale=20)
    assert native == 1


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_products_for_each_head(dtype, rng):
    q, k = (numbers(rng, s, dtype, -1, 1, 1)[0] for s in ((2, 3, 1, 16), (2, 3, 16, 33)))
    results, native = outputs_of(lambda q: q @ popxl.variable(k), q)
    for got in results:
        assert_rounded(got, product(q, k), dtype, 2, scale=4)
    assert native == 1
