"""Updates of variables, against their formulas in float64."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import TensorByRef, ops
from popxl.ops import var_updates
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

UPDATES = {
    "accumulate_": lambda t, x, f: t + f * x,
    "accumulate_square_": lambda t, x, f: t + f * x**2,
    "accumulate_mean_": lambda t, x, f: f / (f + 1) * t + x / (f + 1),
    "accumulate_moving_average_": lambda t, x, f: f * t + (1 - f) * x,
    "accumulate_moving_average_square_": lambda t, x, f: f * t + (1 - f) * x**2,
}
TARGETS = ["stream", "variable", "view"]


def target(kind: str, t: popxl.Tensor) -> popxl.Tensor:
    """A tensor that holds `t`."""
    if kind == "variable":
        v = popxl.variable(np.zeros(t.shape, t.dtype.as_numpy()))
        return var_updates.copy_var_update_(v, t)
    return t.transpose_().transpose_() if kind == "view" else t


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", UPDATES)
def test_accumulators(name, dtype, layout, rng):
    """What is added is of another dtype; the factor is a number, or a tensor of either shape."""
    t, x = numbers(rng, (2, 3), dtype, 1, 2), numbers(rng, (2, 3), popxl.float16, 1, 2)
    f = numbers(rng, (), popxl.float32, 0.1, 0.9)
    update = getattr(var_updates, name)

    def build(t, x, f):
        results = []
        for kind, factor in zip(TARGETS, (0.25, f, f.reshape((1,))), strict=True):
            held = target(kind, t + 0)
            assert update(held, x, factor) is held
            results.append(held)
        return results

    for got, factor in zip(run_on_layout(layout, build, t, x, f), (0.25, None, None), strict=True):

        def reference(t, x, f, factor=factor):
            f = f if factor is None else factor
            return UPDATES[name](*(np.float64(v) for v in (t, x, f)))

        assert_rounded(got, by_replica(layout, reference, [t, x, f]), dtype, 2)


def test_a_series_has_the_mean_of_its_values(rng):
    values = rng.standard_normal((5, 3)).astype(np.float32)

    def build(x):
        mean = popxl.variable(np.zeros(3, np.float32))
        for step in range(5):
            var_updates.accumulate_mean_(mean, x[step], float(step))
        return mean

    np.testing.assert_allclose(run_program(build, values)[0], values.mean(0), rtol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@in_turn("layout", LAYOUTS)
def test_an_accumulator_is_scaled(layout, dtype, rng):
    t, f = numbers(rng, (2, 3), dtype), numbers(rng, (1,), popxl.float32)

    def build(t, f):
        by_number, by_tensor = t + 0, t + 0
        var_updates.accumulator_scale_(by_number, 0.75)
        return by_number, var_updates.accumulator_scale_(by_tensor, f)

    by_number, by_tensor = run_on_layout(layout, build, t, f)
    scaled = by_replica(layout, lambda t, f: 0.75 * t.astype(np.float64), [t, f])
    assert_rounded(by_number, scaled, dtype, 1)
    scaled = by_replica(layout, lambda t, f: np.float64(f) * t.astype(np.float64), [t, f])
    assert_rounded(by_tensor, scaled, dtype, 1)


def test_zero_overwrites_whatever_there_is():
    x = np.array([1, np.nan, np.inf], np.float32)
    for got in run_program(
        lambda t: (var_updates.accumulator_zero_(t + 0), var_updates.accumulator_scale_(t, 0)), x
    ):
        np.testing.assert_array_equal(got, [0, 0, 0])


def test_integers_are_added_up_exactly_and_scaled_ones_cut():
    big = np.array([2**24 + 1, -7], np.int32)
    added, scaled = run_program(
        lambda t: (var_updates.accumulate_(t + 0, t), var_updates.accumulate_(t + 0, t, 0.5)), big
    )
    np.testing.assert_array_equal(added, 2 * big)
    np.testing.assert_array_equal(scaled, np.trunc(1.5 * big))


@pytest.mark.parametrize("factor", ["none", "number", "tensor"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@in_turn("layout", LAYOUTS)
def test_sparse_accumulate(layout, axis, factor, rng):
    shape = (4, 5, 6)
    t = numbers(rng, shape, popxl.float32)
    indices = [rng.integers(0, 4, (3, 2)).astype(np.uint32) for _ in range(4)]
    at = axis % 3
    x = numbers(rng, (*shape[:at], 3, 2, *shape[at + 1 :]), popxl.float16)
    f = numbers(rng, (), popxl.float32, 0.5, 2)

    def build(t, x, i, f):
        given = {"none": None, "number": 0.5, "tensor": f}[factor]
        held = target("variable", t)
        assert var_updates.sparse_accumulate_(held, x, i, axis, given, W=t) is held
        return held

    (got,) = run_on_layout(layout, build, t, x, indices, f)

    def reference(t, x, i, f):
        by = {"none": 1, "number": 0.5, "tensor": f}[factor]
        rows = np.moveaxis(t.astype(np.float64), at, 0).copy()
        np.add.at(rows, i, by * np.moveaxis(x.astype(np.float64), (at, at + 1), (0, 1)))
        return np.moveaxis(rows, 0, at)

    expected = by_replica(layout, reference, [t, x, indices, f])
    assert_rounded(got, expected, popxl.float32, 2, scale=10)


def test_sparse_accumulate_of_an_index_out_of_range_is_an_error():
    with pytest.raises(IndexError, match="sparse_accumulate_: index 3 is outside .* size 3"):
        run_program(
            lambda t, i: var_updates.sparse_accumulate_(t, t[:1], i), np.ones(3, "f"), np.array([3])
        )


@pytest.mark.parametrize("replicas", [1, 2])
def test_updates_last_from_run_to_run_in_a_recorded_graph(replicas):
    """By reference; the runs after the second are from the recording."""

    def update(total: TensorByRef, part: TensorByRef, x: popxl.Tensor):
        var_updates.accumulate_(total, x, 0.5)
        ops.scaled_add_(ops.slice_(part, 1, 3), x[:2], 1.0, -1.0)
        var_updates.sparse_accumulate_(part, x, popxl.constant([0, 0, 3, 3], popxl.int32))

    ir = popxl.Ir(replication=replicas)
    with ir.main_graph:
        each = {"retrieval_mode": "all_replicas"} if replicas > 1 else {}
        total, part = (popxl.variable(np.zeros(4, np.float32), **each) for _ in range(2))
        stream = popxl.h2d_stream((4,), popxl.float32)
        x = ops.host_load(stream)
        ops.call(ir.create_graph(update, total, part, x), total, part, x)
    want = np.zeros((2, replicas, 4))
    with popxl.Session(ir) as session:
        for run in range(6):
            given = np.arange(4 * replicas, dtype=np.float32).reshape(replicas, 4) + run
            session.run({stream: given if replicas > 1 else given[0]})
            want[0] += given / 2
            want[1, :, 1:3] -= given[:, :2]
            want[1, :, 0] += given[:, 0] + given[:, 1]
            want[1, :, 3] += given[:, 2] + given[:, 3]
            for variable, expected in zip((total, part), want, strict=True):
                got = session.get_tensor_data(variable)
                np.testing.assert_allclose(got.reshape(replicas, 4), expected, rtol=1e-6)
