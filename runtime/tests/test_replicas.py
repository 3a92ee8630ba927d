"""Groupings of replicas, and the mesh on which their values lie."""

from __future__ import annotations

import itertools

import numpy as np
import popxl
import pytest
import torch
from popxl_torch.collectives.mesh import Mesh
from popxl_torch.memory.arrays import to_torch


def strided(replicas: int, stride: int, size: int) -> list[int]:
    """Replica r is in the same group as r + stride, up to `size` of them."""
    assignment = [-1] * replicas
    for r in range(replicas):
        if assignment[r] < 0:
            group = max(assignment) + 1
            for member in range(size):
                assignment[r + member * stride] = group
    return assignment


def pairs(replicas: int) -> list[tuple[int, int]]:
    counts = range(1, replicas + 1)
    return [(s, n) for s, n in itertools.product(counts, counts) if replicas % (s * n) == 0]


@pytest.mark.parametrize(
    "stride, size, assignment",
    [
        (1, 2, [0, 0, 1, 1, 2, 2, 3, 3]),
        (2, 2, [0, 1, 0, 1, 2, 3, 2, 3]),
        (2, 4, [0, 1, 0, 1, 0, 1, 0, 1]),
        (1, None, [0, 0, 0, 0, 0, 0, 0, 0]),
        (2, None, [0, 1, 0, 1, 0, 1, 0, 1]),
        (8, None, [0, 1, 2, 3, 4, 5, 6, 7]),
        (1, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_assignments_of_eight_replicas(stride, size, assignment):
    assert popxl.Ir(replication=8).replica_grouping(stride, size).assignment == assignment


@pytest.mark.parametrize("replicas", [1, 2, 6, 12, 16])
def test_every_stride_and_size(replicas):
    ir = popxl.Ir(replication=replicas)
    for stride, size in pairs(replicas):
        group = ir.replica_grouping(stride, size)
        assert group.assignment == strided(replicas, stride, size)
        assert group.num_groups == replicas // size
        assert group.group_size == size
        assert group.is_const
        assert group.stride == (stride if size > 1 else 1)


@pytest.mark.parametrize("replicas", [6, 8])
def test_strides_and_sizes_that_do_not_fit(replicas):
    ir = popxl.Ir(replication=replicas)
    counts = range(-1, replicas + 2)
    for stride, size in itertools.product(counts, counts):
        fits = stride > 0 and (size == 1 or (stride, size) in pairs(replicas))
        if not fits:
            with pytest.raises(ValueError, match=f"stride={stride}, group_size={size}"):
                ir.replica_grouping(stride, size)


@pytest.mark.parametrize(
    "assignment, transposed",
    [
        ([0, 0, 1, 1], [0, 1, 0, 1]),
        ([0, 1, 0, 1], [0, 0, 1, 1]),
        ([0, 0, 0, 0], [0, 1, 2, 3]),
        ([0, 1, 2, 3], [0, 0, 0, 0]),
        ([0, 1, 1, 0], [0, 0, 1, 1]),
    ],
)
def test_transpose_groups_the_first_members_then_the_second_ones(assignment, transposed):
    ir = popxl.Ir(replication=4)
    group = ir.replica_grouping_from_assignments(assignment)
    assert group.transpose().assignment == transposed


def test_transposing_the_axes_of_two_dimensional_tensor_parallelism():
    ir = popxl.Ir(replication=16)
    tp1, tp2 = ir.replica_grouping(stride=4, group_size=4), ir.replica_grouping(group_size=4)
    assert tp1.transpose() == tp2
    assert tp2.transpose() == tp1


def test_groups_are_numbered_as_they_appear():
    ir = popxl.Ir(replication=4)
    group = ir.replica_grouping_from_assignments([7, 3, 7, 9])
    assert group.assignment == [0, 1, 0, 2]
    assert not group.is_const
    with pytest.raises(ValueError, match=r"groups of sizes \[1, 2\]"):
        _ = group.group_size


def test_irregular_groups_have_no_stride():
    group = popxl.Ir(replication=4).replica_grouping_from_assignments([0, 1, 1, 0])
    assert group.group_size == 2
    assert not group.is_const
    with pytest.raises(NotImplementedError, match=r"neighbours \[1, 3\] apart"):
        _ = group.stride


def test_equal_groupings_are_one_key():
    ir = popxl.Ir(replication=4)
    one, same = ir.replica_grouping(2), ir.replica_grouping_from_assignments([5, 1, 5, 1])
    assert one == same
    assert len({one, same, ir.replica_grouping(1)}) == 2
    assert repr(one) == "ReplicaGrouping(num_replicas=4, stride=2, group_size=2, num_groups=2)"


# --- replicas of an Ir ---


def test_an_ir_has_its_replicas_in_one_process():
    ir = popxl.Ir(replication=6)
    assert (ir.replication_factor, ir.instance_replication_factor) == (6, 6)
    ir.replication_factor = 4
    assert ir.replica_grouping().assignment == [0, 0, 0, 0]
    assert popxl.Ir().replication_factor == 1
    assert popxl.Ir("popdist").replication_factor == 1


def test_replicas_of_several_processes_are_shared_evenly(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    ir = popxl.Ir(replication="popdist")
    assert (ir.replication_factor, ir.instance_replication_factor) == (2, 1)
    ir.replication_factor = 8
    assert ir.instance_replication_factor == 4
    with pytest.raises(ValueError, match="replication factor of 3 cannot be shared evenly by 2"):
        ir.replication_factor = 3


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "all", None])
def test_a_number_of_replicas_is_a_number_from_one(wrong):
    with pytest.raises(ValueError, match=f"'popdist' or an integer from 1, got {wrong!r}"):
        popxl.Ir(replication=wrong)


# --- the mesh ---


@pytest.mark.parametrize(
    "replicas, groupings, dims",
    [
        (1, [(1, 1)], ()),
        (4, [], (4,)),
        (16, [(1, 4), (4, 4), (1, 16)], (4, 4)),
        (16, [(1, 2), (2, 8)], (8, 2)),
        (16, [(2, 2)], (4, 2, 2)),
        (12, [(2, 3)], (2, 3, 2)),
    ],
)
def test_axes_come_from_the_groupings(replicas, groupings, dims):
    ir = popxl.Ir(replication=replicas)
    assert Mesh(replicas, [ir.replica_grouping(*g) for g in groupings]).dims == dims


@pytest.mark.parametrize("replicas", [1, 6, 16])
def test_values_of_groups_reach_their_replicas_and_come_back(replicas):
    ir = popxl.Ir(replication=replicas)
    groupings = [ir.replica_grouping(*pair) for pair in pairs(replicas)]
    for fitted in ([], groupings[:1], groupings[-2:], groupings):
        mesh = Mesh(replicas, fitted)
        for group in groupings:
            host = torch.arange(group.num_groups * 3).reshape(-1, 3)
            host = host if group.num_groups > 1 else host[0]
            value = mesh.from_groups(host, group)
            expected = host.reshape(-1, 3)[group.assignment]
            assert torch.equal(mesh.flat(value), expected)
            assert torch.equal(mesh.to_groups(value, group), host)
            assert torch.equal(mesh.to_groups(mesh.full(value), group), host)


def test_values_of_groups_along_axes_are_no_copies():
    ir = popxl.Ir(replication=16)
    groupings = [ir.replica_grouping(1, 4), ir.replica_grouping(4, 4), ir.replica_grouping(1, 1)]
    mesh = Mesh(16, groupings)
    for group, shape in zip(groupings, [(4, 1, 5), (1, 4, 5), (4, 4, 5)], strict=True):
        host = torch.zeros(group.num_groups, 5)
        value = mesh.from_groups(host, group)
        assert value.shape == shape
        assert value.data_ptr() == host.data_ptr()


@pytest.mark.parametrize("equal", [(), (0,), (1,), (0, 1)])
def test_equal_replicas_are_held_once(equal):
    ir = popxl.Ir(replication=6)
    mesh = Mesh(6, [ir.replica_grouping(1, 2)])
    assert mesh.dims == (3, 2)
    grid = np.random.default_rng(0).normal(size=(3, 2, 4))
    for axis in equal:
        grid = np.broadcast_to(grid.take([0], axis=axis), (3, 2, 4))
    host = grid.reshape(6, 4)
    value = mesh.from_replicas(host, torch.tensor(host))
    assert value.shape == tuple(1 if axis in equal else n for axis, n in enumerate((3, 2))) + (4,)
    np.testing.assert_array_equal(mesh.flat(value).numpy(), host)


def test_broadcast_arrays_are_held_once_without_looking_at_them():
    host = np.broadcast_to(np.zeros(1, np.int8), (4, 1 << 40))
    mesh = Mesh(4)
    assert mesh.from_replicas(host, to_torch(host)).shape == (1, 1 << 40)
