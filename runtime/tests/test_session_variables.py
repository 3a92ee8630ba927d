"""Variables of a session: read, written, and apart from those of other sessions."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops
from programs import store

X = np.array([1, 2, 3], np.float32)


def program_of_a_variable() -> tuple[popxl.Session, popxl.Variable, popxl.DeviceToHostStream]:
    """A session, the variable `v` that holds X, and the stream that it is stored to."""
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable(X, name="v")
        (output,) = store([v])
    return popxl.Session(ir), v, output


def test_variables_are_read_as_copies():
    session, v, _ = program_of_a_variable()
    session.get_tensor_data(v)[...] = -1
    np.testing.assert_array_equal(session.get_tensor_data(v), X)


def test_constants_can_be_read():
    ir = popxl.Ir()
    with ir.main_graph:
        c, v = popxl.constant(X), popxl.variable(-X)
        made = c + v
    session = popxl.Session(ir)
    data = session.get_tensors_data([c, v])
    np.testing.assert_array_equal(data[c], X)
    np.testing.assert_array_equal(data[v], -X)
    data[c][...] = 7
    np.testing.assert_array_equal(session.get_tensor_data(c), X)
    with pytest.raises(TypeError, match="neither variable nor constant"):
        session.get_tensor_data(made)


@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_retrieval_of_all_replicas(replicas, group_size):
    if group_size > replicas:
        group_size = 1
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph:
        grouping = ir.replica_grouping(group_size=group_size)
        groups = grouping.num_groups
        data = np.arange(groups * 2, dtype=np.float32).reshape(groups, 2)
        v = popxl.variable(
            data if groups > 1 else data[0],
            replica_grouping=grouping,
            retrieval_mode="all_replicas",
        )
        x = popxl.h2d_stream((), popxl.float32)
        ops.add_(v, ops.host_load(x))
    each = np.arange(replicas, dtype=np.float32) if replicas > 1 else np.float32(0)
    with popxl.Session(ir) as session:
        session.run({x: each})
        got = session.get_tensor_data(v)
    expected = data[grouping.assignment] + np.reshape(each, (-1, 1))
    np.testing.assert_array_equal(got, expected if replicas > 1 else expected[0])


def test_writing_variables():
    session, v, output = program_of_a_variable()
    with session:
        session.write_variable_data(v, -X)
        np.testing.assert_array_equal(session.get_tensor_data(v), -X)
        np.testing.assert_array_equal(session.run()[output], -X)


def test_a_number_can_be_written_to_a_scalar():
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable(1.5, popxl.float16)
    session = popxl.Session(ir)
    session.write_variable_data(v, 2)
    assert session.get_tensor_data(v) == 2


def test_nothing_is_written_unless_all_can_be():
    ir = popxl.Ir(replication=2)
    with ir.main_graph:
        a = popxl.variable(np.stack([X, X]), name="a", replica_grouping=ir.replica_grouping(2))
        b = popxl.variable(X, name="b")
        made = b + 1
    session = popxl.Session(ir)
    new = np.stack([-X, -X])
    for bad, error, message in [
        (X[:2], ValueError, r"variable b: expected data of shape \(3,\) .*got \(2,\)"),
        (new, ValueError, r"variable b: .*got \(2, 3\)"),
        (X.astype(np.float16), TypeError, "variable b is float32, the data float16"),
        (X.astype(float), TypeError, "variable b is float32, the data float64"),
    ]:
        with pytest.raises(error, match=message):
            session.write_variables_data({a: new, b: bad})
    with pytest.raises(ValueError, match=r"variable a: .*\(2, 3\) \(2 groups of \(3,\)\)"):
        session.write_variables_data({b: -X, a: X})
    with pytest.raises(TypeError, match="is not a variable"):
        session.write_variables_data({b: -X, made: X})
    np.testing.assert_array_equal(session.get_tensor_data(a), [X, X])
    np.testing.assert_array_equal(session.get_tensor_data(b), X)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("dtype", [popxl.float32, popxl.bfloat16, popxl.uint16, popxl.int8])
def test_a_variable_filled_with_values_over_and_over(dtype, swapped):
    ir = popxl.Ir(replication=2)
    host = dtype.as_numpy()
    with ir.main_graph:
        each = ir.replica_grouping(group_size=1)
        v = popxl.variable(np.zeros((2, 3, 4), host), dtype, replica_grouping=each)
    session = popxl.Session(ir)
    values = np.arange(1, 6).astype(host)
    session.fill_variable_data(v, values, swapped)
    expected = np.resize(values, (2, 4, 3) if swapped else (2, 3, 4))
    expected = expected.swapaxes(1, 2) if swapped else expected
    np.testing.assert_array_equal(session.get_tensor_data(v), expected)


def test_what_cannot_fill_a_variable_is_refused():
    session, v, _ = program_of_a_variable()
    with pytest.raises(TypeError, match="v is float32, the data int32"):
        session.fill_variable_data(v, np.ones(3, np.int32))
    with pytest.raises(ValueError, match="of one dimension and not empty"):
        session.fill_variable_data(v, np.ones(0, np.float32))


def test_variables_of_another_program_are_refused():
    (session, _, _), (_, other, _) = program_of_a_variable(), program_of_a_variable()
    with pytest.raises(ValueError, match="v belongs to another Ir"):
        session.write_variable_data(other, X)
    with pytest.raises(ValueError, match="v belongs to another Ir"):
        session.get_tensor_data(other)


def test_two_sessions_side_by_side():
    counters = []
    for start in (0, 100):
        ir = popxl.Ir()
        with ir.main_graph:
            v = popxl.variable(start)
            ops.add_(v, 1)
            (y,) = store([v])
        counters.append((popxl.Session(ir), y))
    (first, y1), (second, y2) = counters
    with first, second:
        assert [int(first.run()[y1]), int(second.run()[y2]), int(first.run()[y1])] == [1, 101, 2]
        assert int(second.run()[y2]) == 102


def test_two_sessions_of_one_program():
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable(X)
        ops.add_(v, 1)
    first, second = popxl.Session(ir), popxl.Session(ir)
    with first, second:
        first.run()
        first.run()
        second.run()
    np.testing.assert_array_equal(first.get_tensor_data(v), X + 2)
    np.testing.assert_array_equal(second.get_tensor_data(v), X + 1)
