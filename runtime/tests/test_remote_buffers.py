"""Remote buffers and the variables in them: offsets, replicas, memory that is mapped, not read."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import popxl
import pytest
from popxl import ops
from programs import run_program, store

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def filled_buffer(rows=ROWS) -> popxl.RemoteBuffer:
    buffer = popxl.remote_buffer(rows.shape[1:], popxl.dtype.as_dtype(rows.dtype), len(rows))
    for entry, row in enumerate(rows):
        popxl.remote_variable(row, buffer, entry)
    return buffer


def test_a_buffer_tells_what_it_is(main_graph):
    first = popxl.remote_buffer((2, 3), popxl.float16, 5)
    second = popxl.RemoteBuffer((4,), popxl.int8, 1)
    assert (first.tensor_shape, first.tensor_dtype, first.entries) == ((2, 3), popxl.float16, 5)
    assert (first.remote_buffer_id, second.remote_buffer_id) == (1, 2)
    first.entries = 9
    assert "entries=9" in repr(first)


def test_a_buffer_of_shards_takes_tensors_that_are_split_so(main_graph):
    buffer = popxl.remote_buffer((3,), popxl.float32, 4)
    whole = popxl.variable(np.zeros((2, 5), np.float32), name="whole")
    buffer.validate_tensor_matches_buffer(whole, num_shards=4)
    for shards, shape in [(1, r"\(2, 5\)"), (5, r"\(2,\)")]:
        with pytest.raises(ValueError, match=rf"whole is float32 {shape}, .* holds float32 \(3,\)"):
            buffer.validate_tensor_matches_buffer(whole, shards)


def test_a_slot_never_written_holds_zeros():
    def build():
        buffer = popxl.remote_buffer((2,), popxl.int32, 3)
        return ops.remote_load(buffer, 2)

    np.testing.assert_array_equal(run_program(build)[0], [0, 0])


def test_offsets_are_numbers_or_tensors():
    def build(i):
        buffer = filled_buffer()
        x = ops.remote_load(buffer, i, "row") * 10
        ops.remote_store(buffer, 0, x)
        ops.remote_store(buffer, i.reshape((1,)) + 1, x + 1)
        into = ops.init((3,), popxl.float32)
        return [
            *(ops.remote_load(buffer, n) for n in range(4)),
            ops.remote_load_(buffer, np.int64(2), into),
        ]

    results = run_program(build, np.array(2, np.int32))
    expected = [ROWS[2] * 10, ROWS[1], ROWS[2], ROWS[2] * 10 + 1, ROWS[2]]
    np.testing.assert_array_equal(results, expected)


@pytest.mark.parametrize("dtype", [popxl.int8, popxl.uint32], ids=str)
def test_offsets_of_every_integer_type(dtype):
    def build(i):
        return ops.remote_load(filled_buffer(), i)

    np.testing.assert_array_equal(run_program(build, np.array(3, dtype.as_numpy()))[0], ROWS[3])


def test_replicas_reach_slots_of_their_own():
    def build(i, x):
        buffer = filled_buffer()
        loaded = ops.remote_load(buffer, i)
        ops.remote_store(buffer, i, x)
        cache = ops.remote_load(buffer, i)
        ops.add_(cache, 100)
        ops.remote_store(buffer, i, cache)
        return [loaded, *(ops.remote_load(buffer, n) for n in range(4))]

    i = np.array([2, 0, 2, 1], np.int32)
    x = -np.arange(12, dtype=np.float32).reshape(4, 3)
    slots = np.stack([ROWS] * 4)
    slots[np.arange(4), i] = x + 100
    loaded, *left = run_program(build, i, x, replicas=4)
    np.testing.assert_array_equal(loaded, ROWS[i])
    np.testing.assert_array_equal(np.stack(left, axis=1), slots)


def test_slots_keep_what_is_stored_from_run_to_run():
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((), popxl.int32)
        count = ops.remote_load(buffer, 0) + 1
        ops.remote_store(buffer, 0, count)
        (stream,) = store([count])
    with popxl.Session(ir) as session:
        assert [int(session.run()[stream]) for _ in range(3)] == [1, 2, 3]


def test_a_loop_walks_through_the_slots():
    def layer(i, x):
        return i + 1, x * 10 + ops.remote_load(buffers[0], i)

    def build(i, x):
        buffers.append(filled_buffer())
        return ops.repeat(popxl.gir().create_graph(layer, i, x), 4, i, x)[1]

    buffers: list = []
    (got,) = run_program(build, np.array(0, np.int32), np.zeros(3, np.float32))
    expected = np.zeros(3)
    for row in ROWS:
        expected = expected * 10 + row
    np.testing.assert_array_equal(got, expected)


def test_an_offset_out_of_range_names_the_buffer():
    def build(i):
        return ops.remote_load(filled_buffer(), i)

    for bad in (-1, 4):
        with pytest.raises(IndexError, match=f"remote_buffer_1: offset {bad} is outside its 4"):
            run_program(build, np.array(bad, np.int32))
    with pytest.raises(IndexError, match="offset 7 is outside its 4 entries"):
        run_program(build, np.array([0, 7], np.int32), replicas=2)


# --- variables ---


@pytest.mark.parametrize("dtype", [popxl.float16, popxl.bfloat16, popxl.uint32], ids=str)
def test_remote_variables_are_read_and_written_like_others(dtype):
    ir = popxl.Ir(replication=4)
    first, second = (np.arange(n, n + 4).astype(dtype.as_numpy()).reshape(2, 2) for n in (0, 9))
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), dtype, 2)
        grouping = ir.replica_grouping(2)
        v = popxl.remote_variable(first, buffer, 1, replica_grouping=grouping)
        loaded = ops.remote_load(buffer, 1)
        ops.remote_store(buffer, 1, ops.concat([loaded[1:], loaded[:1]]))
        (stream,) = store([loaded])
    with popxl.Session(ir) as session:
        np.testing.assert_array_equal(session.run()[stream], first[[0, 1, 0, 1]])
        np.testing.assert_array_equal(session.get_tensor_data(v), first[:, ::-1])
        session.write_variable_data(v, second)
        np.testing.assert_array_equal(session.run()[stream], second[[0, 1, 0, 1]])


@pytest.mark.parametrize("stride, size", [(1, 4), (1, 2), (2, 2), (1, 1)])
def test_every_replica_holds_the_value_of_its_group(stride, size):
    ir = popxl.Ir(replication=4)
    grouping = ir.replica_grouping(stride, size)
    data = np.arange(grouping.num_groups * 3, dtype=np.float32).reshape(-1, 3)
    with ir.main_graph:
        v = popxl.variable(data if len(data) > 1 else data[0], replica_grouping=grouping)
        (stream,) = store([v + 0])
    assert v.shape == v.shape_on_replica == (3,)
    assert v.shape_on_host == v._data.shape
    with popxl.Session(ir) as session:
        np.testing.assert_array_equal(session.run()[stream], data[grouping.assignment])


def test_groups_by_assignment_hold_their_values():
    ir = popxl.Ir(replication=6)
    grouping = ir.replica_grouping_from_assignments([0, 1, 1, 0, 2, 1])
    data = np.array([[1], [2], [3]], np.int32)
    with ir.main_graph:
        v = popxl.variable(data, replica_grouping=grouping)
        (stream,) = store([v + 0])
        ops.add_(v, 10)
    with popxl.Session(ir) as session:
        np.testing.assert_array_equal(session.run()[stream].ravel(), [1, 2, 2, 1, 3, 2])
        np.testing.assert_array_equal(session.get_tensor_data(v), data + 10)


# --- memory ---


def memory_of(session: popxl.Session, variable: popxl.Variable) -> np.ndarray:
    """The memory in which a session holds a variable, as an array."""
    return session._executor.variables.cells[variable].tensor.numpy()


@pytest.fixture
def mapped(tmp_path) -> np.memmap:
    """Eight rows on disk, mapped for reading alone."""
    path = tmp_path / "weights"
    np.arange(32, dtype=np.float32).reshape(8, 4).tofile(path)
    return np.memmap(path, np.float32, "r", shape=(8, 4))


@pytest.mark.parametrize("replicas", [1, 4])
def test_memory_maps_stay_mapped(mapped, replicas):
    ir = popxl.Ir(replication=replicas)
    grouping = ir.replica_grouping(group_size=1)
    rows = mapped[:replicas] if replicas > 1 else mapped[0]
    with ir.main_graph:
        buffer = popxl.remote_buffer((4,), popxl.float32)
        remote = popxl.remote_variable(rows, buffer, 0, replica_grouping=grouping)
        v = popxl.variable(rows, replica_grouping=grouping)
        loaded = ops.remote_load(buffer, 0)
        total = ops.sum(loaded + v)
        ops.add_(loaded, 1)  # a tensor of its own: the slot stays what it is
        (stream,) = store([total])
    with popxl.Session(ir) as session:
        for held in (remote, v):
            assert np.shares_memory(memory_of(session, held), mapped)
        session.run()
        for held in (remote, v):
            assert np.shares_memory(memory_of(session, held), mapped)
        written = mapped[-replicas:] if replicas > 1 else mapped[-1]
        session.write_variable_data(remote, written)
        assert np.shares_memory(memory_of(session, remote), written)
        expected = (written + rows).reshape(replicas, 4).sum(1)
        np.testing.assert_array_equal(session.run()[stream].ravel(), expected)


def test_a_mapped_variable_that_is_written_to_gets_memory_of_its_own(mapped):
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable(mapped)
        ops.add_(v, 1)
    before = mapped.copy()
    with popxl.Session(ir) as session:
        session.run()
        assert not np.shares_memory(memory_of(session, v), mapped)
        np.testing.assert_array_equal(session.get_tensor_data(v), before + 1)
    np.testing.assert_array_equal(mapped, before)


def test_transposed_weights_keep_their_strides(mapped):
    """`[in, out]` over bytes that lie as `[out, in]`: the fast order for one row."""
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((4, 8), popxl.float32)
        w = popxl.remote_variable(mapped.T, buffer)
        x = popxl.constant(np.ones((1, 4), np.float32))
        (stream,) = store([ops.matmul(x, ops.remote_load(buffer, 0))])
    with popxl.Session(ir) as session:
        assert memory_of(session, w).strides == mapped.T.strides
        assert np.shares_memory(memory_of(session, w), mapped)
        np.testing.assert_array_equal(session.run()[stream], mapped.sum(1)[None])


@pytest.mark.parametrize("unusual", ["negative strides", "field of a record", "big-endian"])
def test_arrays_that_torch_cannot_share_are_copied(unusual):
    plain = np.arange(6, dtype=np.float32)
    records = np.zeros(6, [("tag", "u1"), ("value", "f4")])
    records["value"] = plain
    array = {
        "negative strides": plain[::-1].copy()[::-1],
        "field of a record": records["value"],
        "big-endian": plain.astype(">f4"),
    }[unusual]
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable(array)
        stream = popxl.h2d_stream((6,), popxl.float32)
        outputs = store([v + 0, ops.host_load(stream) + 0])
    with popxl.Session(ir) as session:
        for result in session.run({stream: array}).values():
            np.testing.assert_array_equal(result, plain)
    assert len(outputs) == 2


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's counts of pages")
def test_a_slot_takes_memory_only_where_it_was_written_to():
    rows, width = 1 << 12, 1 << 12  # 64 MB of float32

    def write(slot: popxl.TensorByRef):
        one = popxl.constant(np.ones((1, width), np.float32))
        ops.dynamic_update_(slot, popxl.constant([5], popxl.int32), one, [0], [1], True)
        return ops.slice(slot, 4, 7)

    def build():
        buffer = popxl.remote_buffer((rows, width), popxl.float32, 1)
        slot = ops.remote_load(buffer, 0)
        (found,) = ops.call(popxl.gir().create_graph(write, slot), slot)
        ops.remote_store(buffer, 0, slot)
        return found

    before = resident_bytes()
    (found,) = run_program(build)
    assert found[1].sum() == width
    assert not found[[0, 2]].any()
    assert resident_bytes() - before < rows * width * 4 // 4


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
