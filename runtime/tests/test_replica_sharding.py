"""Variables spread over replicas: the host reads and writes the whole, a program has the parts."""

from __future__ import annotations

import math

import numpy as np
import popxl
import pytest
from collectives_on_numpy import own_replicas
from popxl import ops
from popxl.ops.collectives import (
    replica_sharded_slice,
    replicated_all_gather,
    replicated_reduce_scatter,
    replicated_slice,
)
from processes import run_in_processes
from programs import in_turn, run_program, store

LAYOUTS = {
    "all replicas hold one value": (8, 1, 8, 8),
    "a value is held twice": (8, 1, 8, 4),
    "groups of neighbours": (8, 1, 4, 2),
    "groups of every second replica": (8, 2, 4, 4),
    "groups of far replicas, each value twice": (8, 2, 4, 2),
    "one part a value": (4, 1, 2, 1),
    "a size that is no power of two": (6, 1, 3, 3),
}
"""Replicas, stride and size of the groups that share a value, parts a value."""

SHAPES = [(4, 4), (3, 5), (1,), (2, 1, 3)]


def whole_of(grouping: popxl.ReplicaGrouping, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    groups = grouping.num_groups
    values = np.arange(1, 1 + groups * math.prod(shape)).astype(dtype)
    return values.reshape((groups, *shape) if groups > 1 else shape)


def of_replicas(whole: np.ndarray, grouping: popxl.ReplicaGrouping) -> np.ndarray:
    """The value of each replica's group."""
    assignment = grouping.assignment
    return whole[assignment] if grouping.num_groups > 1 else np.stack([whole] * len(assignment))


def part_of(values: np.ndarray, assignment: list[int], over: int) -> np.ndarray:
    """What each replica holds of its group's value, given for every replica."""
    flat = values.reshape(len(values), -1)
    length = -(-flat.shape[1] // over)
    filled = np.pad(flat, ((0, 0), (0, length * over - flat.shape[1])))
    members = [assignment[:r].count(g) % over for r, g in enumerate(assignment)]
    return np.stack([filled[r, m * length : (m + 1) * length] for r, m in enumerate(members)])


def made(whole: np.ndarray, remote: bool, grouping: popxl.ReplicaGrouping, over: int, mode: str):
    """The variable, the part to compute with, and what keeps the part for the next run."""
    if not remote:
        variable, part = popxl.replica_sharded_variable(
            whole, replica_grouping=grouping, shard_over=over, retrieval_mode=mode
        )
        return variable, part, lambda: None
    dtype = popxl.dtype.as_dtype(whole.dtype)
    buffer = popxl.replica_sharded_buffer(whole.shape, dtype, grouping, over, entries=2)
    variable = popxl.remote_replica_sharded_variable(
        whole, buffer, 1, replica_grouping=grouping, retrieval_mode=mode
    )
    part = ops.remote_load(buffer, 1)
    return variable, part, lambda: ops.remote_store(buffer, 1, part)


def check_life(
    ir: popxl.Ir, grouping: popxl.ReplicaGrouping, over: int, remote: bool, shape, dtype, mode: str
) -> None:
    """Parts are those of the value, they last from run to run, and the host sees the whole."""
    whole = whole_of(grouping, shape, dtype)
    together = ir.replica_grouping(grouping.stride, over)
    with ir.main_graph, popxl.in_sequence():
        variable, part, keep = made(whole, remote, grouping, over, mode)
        streams = store([part, replicated_all_gather(part, group=together)])
        ops.add_(part, part)
        keep()
    assert variable.shape == variable.shape_on_replica == part.meta_shape == shape
    assert variable.shape_on_host == whole.shape
    own = own_replicas(ir)
    with popxl.Session(ir) as session:
        check_run(session, variable, streams, whole, over, own)
        check_run(session, variable, streams, whole * 2, over, own)
        if mode == "one_per_group":  # others are only read
            session.write_variable_data(variable, whole * 3)
            check_run(session, variable, streams, whole * 3, over, own)


def check_run(session, variable, streams, before: np.ndarray, over: int, own: slice) -> None:
    """One run with the variable at `before`, which the program doubles."""
    outputs = session.run()
    grouping = variable.replica_grouping
    expected = of_replicas(before, grouping)
    parts = part_of(expected, grouping.assignment, over)
    for stream, values in zip(streams, (parts, expected), strict=True):
        np.testing.assert_array_equal(outputs[stream], values[own].reshape(outputs[stream].shape))
    everywhere = variable.retrieval_mode == "all_replicas"
    held = of_replicas(before * 2, grouping) if everywhere else before * 2
    np.testing.assert_array_equal(session.get_tensor_data(variable), held)


@pytest.mark.parametrize("mode", ["one_per_group", "all_replicas"])
@pytest.mark.parametrize("remote", [False, True])
@in_turn("layout", LAYOUTS)
def test_a_variable_is_whole_on_the_host_and_in_parts_on_replicas(layout, remote, mode):
    replicas, stride, size, over = LAYOUTS[layout]
    for shape in SHAPES:
        ir = popxl.Ir(replication=replicas)
        grouping = ir.replica_grouping(stride, size)
        check_life(ir, grouping, over, remote, shape, np.float32, mode)


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.uint16, np.int32, np.uint32])
def test_every_dtype_can_be_filled_up(dtype):
    ir = popxl.Ir(replication=4)
    check_life(ir, ir.replica_grouping(), 4, False, (3, 2), dtype, "one_per_group")


def lives(remote: bool, mode: str) -> None:
    for replicas, stride, size, over in LAYOUTS.values():
        ir = popxl.Ir(replication="popdist")
        ir.replication_factor = replicas
        grouping = ir.replica_grouping(stride, size)
        check_life(ir, grouping, over, remote, (3, 5), np.float32, mode)


@pytest.mark.parametrize(("remote", "mode"), [(False, "one_per_group"), (True, "all_replicas")])
def test_in_two_processes(remote, mode):
    run_in_processes(2, lives, remote, mode)


def test_groups_by_assignment():
    ir = popxl.Ir(replication=8)
    grouping = ir.replica_grouping_from_assignments([0, 0, 1, 1, 0, 0, 1, 1])
    whole = whole_of(grouping, (5,), np.float32)
    with ir.main_graph:
        variable, part = popxl.replica_sharded_variable(whole, replica_grouping=grouping)
        streams = store([part, replicated_all_gather(part, group=ir.replica_grouping(1, 2))])
        ops.add_(part, part)
    with popxl.Session(ir) as session:
        check_run(session, variable, streams, whole, 2, slice(0, 8))


def test_parts_that_were_written_apart_are_read_from_the_first_replicas_of_a_group():
    ir = popxl.Ir(replication=4)
    with ir.main_graph:
        kept = [
            popxl.replica_sharded_variable(np.zeros(4, np.float32), shard_over=2, retrieval_mode=m)
            for m in ("one_per_group", "all_replicas")
        ]
        number = ops.host_load(popxl.h2d_stream((), popxl.float32, "replica"))
        for _, part in kept:
            ops.add_(part, number)
    with popxl.Session(ir) as session:
        (stream,) = session.expected_inputs()
        session.run({stream: np.arange(4, dtype=np.float32)})
        first, every = session.get_tensors_data([v for v, _ in kept]).values()
    np.testing.assert_array_equal(first, [0, 0, 1, 1])
    np.testing.assert_array_equal(every, [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2)


def test_a_filled_variable():
    ir = popxl.Ir(replication=2)
    with ir.main_graph:
        variable, part = popxl.replica_sharded_variable(np.zeros((3, 3), np.float32))
        store([part])
    with popxl.Session(ir) as session:
        session.fill_variable_data(variable, np.arange(4, dtype=np.float32))
        expected = np.resize(np.arange(4), (3, 3))
        np.testing.assert_array_equal(session.get_tensor_data(variable), expected)


def test_a_buffer_knows_the_shape_of_the_whole():
    ir = popxl.Ir(replication=4)
    grouping = ir.replica_grouping(1, 2)
    with ir.main_graph:
        buffer = popxl.replica_sharded_buffer((2, 3, 5), popxl.int8, grouping, entries=3)
        assert (buffer.tensor_shape, buffer.meta_shape, buffer.entries) == ((8,), (3, 5), 3)
        plain = popxl.remote_buffer((4,), popxl.float32, 2)
        assert plain.meta_shape == ()
        for offset in (0, 1):
            popxl.remote_replica_sharded_variable(np.zeros((4, 4), np.float32), plain, offset)
        assert plain.meta_shape == (4, 4)
        loaded = ops.remote_load(plain, 1)
        assert (loaded.shape, loaded.meta_shape) == ((4,), (4, 4))
        other = ops.init((4,), popxl.float32)
        assert ops.remote_load_(plain, 0, other).meta_shape == (4, 4)


def test_parts_computed_with_stay_parts():
    ir = popxl.Ir(replication=2)
    with ir.main_graph:
        _, a = popxl.replica_sharded_variable(np.zeros((2, 3), np.float32))
        _, b = popxl.replica_sharded_variable(np.zeros((3, 2), np.float32))
        for t in (a + 1, 2 * a, a + a, ops.sqrt(a), ops.cast(a, popxl.float16)):
            assert t.meta_shape == (2, 3)
        with pytest.raises(ValueError, match=r"add: these are parts of different shapes: .*3, 2"):
            a + b


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("shard_over=16: .* divisor .*, 8", lambda: buffer_of_parts(16)),
        ("shard_over=3: .* divisor .*, 8", lambda: buffer_of_parts(3)),
        ("shard_over=5: .* divisor .*, 8", lambda: variable_of_parts(5)),
        ("offset 1 is outside", lambda: remote((4,), [1.0] * 32, offset=1)),
        ("16 elements, shared by 8 replicas, has no parts", lambda: remote((3,), [1.0] * 16)),
        ("is int32, RemoteBuffer.*is not", lambda: remote((2,), [1] * 16)),
    ],
)  # fmt: skip
def test_what_cannot_be_sharded_is_refused(message, make):
    with popxl.Ir(replication=8).main_graph, pytest.raises(ValueError, match=message):
        make()


def buffer_of_parts(shard_over):
    return popxl.replica_sharded_buffer((4, 4), popxl.float32, shard_over=shard_over)


def variable_of_parts(shard_over):
    return popxl.replica_sharded_variable([1.0], shard_over=shard_over)


def remote(shape, data, offset=0):
    buffer = popxl.remote_buffer(shape, popxl.float32)
    return popxl.remote_replica_sharded_variable(data, buffer, offset)


def test_one_replica_shares_nothing():
    with popxl.Ir().main_graph, pytest.raises(ValueError, match="the Ir has 1 replica"):
        popxl.replica_sharded_variable([1, 2])


def test_the_whole_is_not_computed_with():
    ir = popxl.Ir(replication=2)
    with ir.main_graph:
        variable, _ = popxl.replica_sharded_variable(np.zeros(2, np.float32))
        store([variable + 1])
    with pytest.raises(ValueError, match="is spread over replicas: compute with the part"):
        popxl.Session(ir)


def test_a_buffer_holds_parts_of_one_shape():
    with popxl.Ir(replication=2).main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32, 2)
        popxl.remote_replica_sharded_variable(np.zeros((2, 2), np.float32), buffer)
        with pytest.raises(ValueError, match=r"is \(4,\), but .* variables of shape \(2, 2\)"):
            popxl.remote_replica_sharded_variable(np.zeros(4, np.float32), buffer, 1)


# --- collectives on parts ---


@pytest.mark.parametrize("shape", [(2, 3), (4,), (5, 1, 3)])
@pytest.mark.parametrize(("stride", "size"), [(1, 4), (1, 2), (2, 2), (1, 1)])
def test_a_slice_is_put_together_again(stride, size, shape):
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    ir = popxl.Ir(replication=4)
    group = ir.replica_grouping(stride, size)

    def build(t):
        part = replica_sharded_slice(t, group)
        reduced = replicated_reduce_scatter(t, "add", group, True)
        assert part.meta_shape == reduced.meta_shape == shape
        return (
            part,
            replicated_all_gather(part, group=group),
            replicated_all_gather(reduced, group=group),
        )

    part, gathered, summed = run_program(build, x, ir=ir)
    np.testing.assert_array_equal(part, part_of(x, group.assignment, size))
    # Member i of a group contributes the i-th part of its own value.
    parts = part_of(x, group.assignment, size)
    for r, g in enumerate(group.assignment):
        members = np.equal(group.assignment, g)
        of_group = parts[members].reshape(-1)[: math.prod(shape)].reshape(shape)
        np.testing.assert_array_equal(gathered[r], of_group)
        np.testing.assert_allclose(summed[r], x[members].sum(0), rtol=1e-6)


def test_a_part_is_gathered_from_the_replicas_that_hold_the_whole():
    with popxl.Ir(replication=8).main_graph as graph:
        _, part = popxl.replica_sharded_variable(np.zeros(8, np.float32), shard_over=4)
        assert replicated_all_gather(part).shape == (8,)
        assert replicated_all_gather(part, output_shape="concat").shape == (16,)
        assert replicated_all_gather(part, output_shape="new_axis").shape == (8, 2)
        with pytest.raises(ValueError, match="which 2 replicas do not hold between them"):
            replicated_all_gather(part, group=graph.ir.replica_grouping(1, 2))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize(("stride", "size"), [(1, 2), (2, 2), (1, 4), (1, 1)])
def test_a_slice_along_an_axis(stride, size, axis):
    x = np.random.default_rng(1).normal(size=(4, 8, 12, 16)).astype(np.float32)
    ir = popxl.Ir(replication=4)
    group = ir.replica_grouping(stride, size)
    (got,) = run_program(lambda t: replicated_slice(t, axis, group), x, ir=ir)
    for r, g in enumerate(group.assignment):
        member = group.assignment[:r].count(g)
        np.testing.assert_array_equal(got[r], np.split(x[r], size, axis)[member])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_of_length_1_loses_its_axis(axis):
    x = np.random.default_rng(2).normal(size=(2, 2, 2, 2)).astype(np.float32)
    (got,) = run_program(lambda t: replicated_slice(t, axis), x, replicas=2)
    for r in range(2):
        part = x[r].take(r, axis)
        np.testing.assert_array_equal(got[r], part if axis == 0 else part.T)


def test_an_axis_that_cannot_be_split():
    with popxl.Ir(replication=4).main_graph:
        t = popxl.variable(np.zeros((2, 6), np.float32))
        with pytest.raises(ValueError, match="axis 1 of .* cannot be split evenly over the 4"):
            replicated_slice(t, 1)
