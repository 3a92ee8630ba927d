"""Collectives against numpy: every grouping of 16 replicas, and groupings that fit no mesh."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from collectives_on_numpy import (
    IRREGULAR,
    REDUCTIONS,
    REPLICAS,
    STRIDED,
    UNEQUAL,
    check_all,
    data,
    reduced,
)
from popxl.ops.collectives import (
    replicated_all_gather,
    replicated_all_reduce,
    replicated_all_reduce_,
    replicated_reduce_scatter,
)
from programs import assert_rounded, numbers, run_program


@pytest.mark.parametrize("stride, size", STRIDED)
def test_every_stride_and_size_of_16_replicas(stride, size):
    ir = popxl.Ir(replication=REPLICAS)
    group = ir.replica_grouping(stride, size)
    check_all(ir, [group], [[r // 4 for r in range(16)], group.assignment])


@pytest.mark.parametrize("stride, size", [(1, 4), (4, 4), (2, 2), (2, 4)])
def test_transposed_groupings(stride, size):
    ir = popxl.Ir(replication=REPLICAS)
    group = ir.replica_grouping(stride, size).transpose()
    check_all(ir, [group], [[r % 4 for r in range(16)]])


@pytest.mark.parametrize("name", IRREGULAR)
def test_groupings_by_assignment(name):
    ir = popxl.Ir(replication=REPLICAS)
    group = ir.replica_grouping_from_assignments(IRREGULAR[name])
    check_all(ir, [group, group.transpose()], [[r // 4 for r in range(16)], IRREGULAR[name]])


@pytest.mark.parametrize(
    "replicas, pairs",
    [
        (16, [(1, 4), (4, 4), (1, 16)]),
        (16, [(1, 8), (8, 2), (1, 2), (2, 4)]),
        (16, [(4, 2), (2, 4), (1, 16), (1, 1)]),
        (6, [(1, 2), (1, 3), (2, 3), (3, 2)]),
        (12, [(1, 2), (1, 3), (2, 3), (3, 4), (4, 3), (1, 6), (6, 2)]),
        (12, [(1, 4), (1, 6), (2, 2), (1, 12)]),
        (7, [(1, 7), (1, 1)]),
        (2, [(1, 2), (1, 1)]),
        (1, [(1, 1)]),
    ],
    ids=str,
)
def test_several_groupings_in_one_program(replicas, pairs):
    ir = popxl.Ir(replication=replicas)
    groups = [ir.replica_grouping(stride, size) for stride, size in pairs]
    if replicas == 1:
        x = np.array([[1.5, 2]], np.float32)
        (got,) = run_program(lambda t: replicated_all_reduce(t, "square_add", groups[0]), x, ir=ir)
        np.testing.assert_array_equal(got, x * x)
        return
    check_all(ir, groups, [[r // 2 for r in range(replicas)], [r % 2 for r in range(replicas)]])


def test_strided_and_irregular_groupings_in_one_program():
    ir = popxl.Ir(replication=REPLICAS)
    groups = [ir.replica_grouping_from_assignments(a) for a in IRREGULAR.values()]
    check_all(ir, [*groups, ir.replica_grouping(4, 4)], [[r // 4 for r in range(16)]])


@pytest.mark.parametrize("op", [*REDUCTIONS, "local"])
def test_groups_of_unequal_size_can_reduce(op):
    ir = popxl.Ir(replication=REPLICAS)
    group = ir.replica_grouping_from_assignments(UNEQUAL)
    x = data(REPLICAS, (3,), [])[0]
    (got,) = run_program(lambda t: replicated_all_reduce(t, op, group), x, ir=ir)
    np.testing.assert_allclose(got, reduced(x, UNEQUAL, op), rtol=2e-5)


@pytest.mark.parametrize("replicas, size", [(4, 2), (6, 6), (1, 1)])
@pytest.mark.parametrize("op, reference", [("and", np.all), ("or", np.any)])
def test_logical_reductions(op, reference, replicas, size, rng):
    ir = popxl.Ir(replication=replicas)
    x = rng.integers(0, 2, (replicas, 8)).astype(bool)
    group = ir.replica_grouping(group_size=size)
    given = x if replicas > 1 else x[0]
    (got,) = run_program(lambda t: replicated_all_reduce(t, op, group), given, ir=ir)
    expected = np.repeat(reference(x.reshape(-1, size, 8), axis=1), size, axis=0)
    np.testing.assert_array_equal(got, expected if replicas > 1 else expected[0])


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("dtype", [popxl.int32, popxl.int8, popxl.uint32], ids=str)
@pytest.mark.parametrize("op", REDUCTIONS)
def test_integers(op, dtype, equal, rng):
    x = np.stack(numbers(rng, (5,), dtype, -3, 4))
    x = np.broadcast_to(x[0], x.shape).copy() if equal else x
    whole, pairs = run_program(
        lambda t: (
            replicated_all_reduce(t, op),
            replicated_all_reduce(t, op, popxl.gir().replica_grouping(group_size=2)),
        ),
        x,
        replicas=4,
    )
    wide = x.astype(np.int64)
    for got, assignment in [(whole, [0, 0, 0, 0]), (pairs, [0, 0, 1, 1])]:
        expected = np.trunc(reduced(wide, assignment, op)).astype(dtype.as_numpy())
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == dtype.as_numpy()


@pytest.mark.parametrize("dtype", [popxl.float16, popxl.bfloat16], ids=str)
def test_half_types_add_up_in_float32(dtype, rng):
    """Terms that are half the rounding step of the first one count."""
    step = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype.name]
    x = np.array([[1.0]] + [[step / 2]] * 15, dtype.as_numpy())
    (got,) = run_program(replicated_all_reduce, x, replicas=16)
    assert_rounded(got, np.full((16, 1), 1 + step * 7.5), dtype, 0.5)


def test_a_scalar_is_gathered_along_a_new_axis_by_default():
    x = np.arange(4, dtype=np.float32)
    (got,) = run_program(replicated_all_gather, x, replicas=4)
    np.testing.assert_array_equal(got, [[0, 1, 2, 3]] * 4)


def test_tensors_are_concatenated_by_default():
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    (got,) = run_program(replicated_all_gather, x, replicas=4)
    np.testing.assert_array_equal(got, [np.arange(8)] * 4)


@pytest.mark.parametrize("shape", [(4, 2), (3, 3), (5,)], ids=str)
def test_gathering_the_parts_of_a_sharded_tensor_restores_its_shape(shape, rng):
    x = rng.normal(size=(4, *shape)).astype(np.float32)

    def build(t):
        part = replicated_reduce_scatter(
            t, "add", configure_output_for_replicated_tensor_sharding=True
        )
        assert part.meta_shape == shape
        return replicated_all_gather(part)

    (got,) = run_program(build, x, replicas=4)
    np.testing.assert_allclose(got, np.broadcast_to(x.sum(0), x.shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", ["add", "local", "mean"])
def test_in_place_all_reduce_writes_to_its_operand(op, rng):
    x = rng.normal(size=(4, 3)).astype(np.float32)

    def build(t):
        before = t + 0
        result = replicated_all_reduce_(t, op)
        assert result is t
        return before, t, t * 2

    before, after, doubled = run_program(build, x, replicas=4)
    np.testing.assert_array_equal(before, x)
    np.testing.assert_allclose(after, reduced(x, [0] * 4, op), rtol=1e-5)
    np.testing.assert_allclose(doubled, 2 * after)


def test_a_value_is_used_after_it_was_reduced(rng):
    """Reduced values are held once for all replicas; computing on with others is as before."""
    x, y = (rng.normal(size=(4, 3)).astype(np.float32) for _ in range(2))
    (got,) = run_program(lambda x, y: replicated_all_reduce(x) * y + x, x, y, replicas=4)
    np.testing.assert_allclose(got, x.sum(0) * y + x, rtol=1e-5, atol=1e-6)
