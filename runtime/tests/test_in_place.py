"""What is written in place is seen where it should be, and nowhere else.

`test_random_programs.py` covers more; here are the cases by name.
"""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import TensorByRef, ops
from popxl.ops.collectives import replicated_all_reduce_
from programs import run_program, store

X = np.array([1, 2, 3, 4], np.float32)


def graph_of(fn, *tensors) -> popxl.Graph:
    return popxl.gir().create_graph(fn, *tensors)


def variable(value=X) -> popxl.Variable:
    """A variable that is written to from now on where it is: no longer in its host array."""
    v = popxl.variable(value)
    return ops.add_(v, 0)


def increase(x: TensorByRef, by: popxl.Tensor):
    ops.add_(x, by)


def check(build, *expected, inputs=(X,)):
    for got, want in zip(run_program(build, *inputs), expected, strict=True):
        np.testing.assert_array_equal(got, want)


# --- tensors and variables ---


def test_values_made_before_a_write_keep_their_elements():
    def build(x):
        v = variable()
        before = [v + 0, v[1:3], v.reshape((2, 2)), v.T, ops.identity(v), ops.clip(v)]
        ops.add_(v, x)
        return [*before, v]

    check(build, X, X[1:3], X.reshape(2, 2), X, X, X, 2 * X)


def test_a_write_returns_its_operand():
    def build(x):
        assert ops.add_(x, 1) is x
        assert ops.increment_mod_(x, 1, 100) is x
        assert ops.var_updates.copy_var_update_(x, x + 1) is x
        x += 10
        return x

    check(build, X + 13)


def test_a_stored_output_does_not_change_with_later_writes():
    ir = popxl.Ir()
    with ir.main_graph:
        v = variable()
        before = store([v])[0]
        ops.add_(v, 1)
        after = store([v])[0]
    with popxl.Session(ir) as session:
        results = session.run()
        np.testing.assert_array_equal(results[before], X)
        np.testing.assert_array_equal(results[after], X + 1)


def test_variables_keep_what_is_written_from_run_to_run():
    ir = popxl.Ir()
    with ir.main_graph:
        v = variable()
        ops.add_(v, 1)
    with popxl.Session(ir) as session:
        for _ in range(3):
            session.run()
        np.testing.assert_array_equal(session.get_tensor_data(v), X + 3)


@pytest.mark.parametrize("write", ["root", "view"])
def test_views_and_what_they_view_are_written_together(write):
    def build(x):
        v = variable()
        rows = v.reshape_((2, 2))
        columns = rows.transpose_()
        ops.add_(v if write == "root" else columns, 10)
        return v, rows, columns

    rows = X.reshape(2, 2) + 10
    check(build, X + 10, rows, rows.T)


def test_a_part_of_a_view_is_written():
    def build(x):
        columns = x.reshape_((2, 2)).transpose_()
        ops.dynamic_update_(columns, popxl.constant([1]), columns[:1] * 10, [0], [1], True)
        return x, columns

    check(build, [1, 10, 3, 30], [[1, 3], [10, 30]])


def test_a_value_is_protected_from_a_write_through_a_view():
    def build(x):
        v = variable()
        view, before = v.reshape_((2, 2)), v[:2]
        ops.add_(view, 1)
        return before, v

    check(build, X[:2], X + 1)


def test_a_value_used_later_through_a_view_alone_is_protected():
    def build(x):
        v = variable()
        same = ops.identity(v)
        view = same.reshape_((2, 2))
        ops.add_(v, 1)
        return view, v

    check(build, X.reshape(2, 2), X + 1)


def test_an_all_reduce_in_place_that_changes_nothing_shares_nothing():
    def build(x):
        v = variable()
        same = ops.identity(v)
        replicated_all_reduce_(same, "local")
        ops.add_(v, 1)
        return same, v

    check(build, X, X + 1)


# --- calls ---


def test_by_value_what_a_graph_writes_stays_inside():
    def inside(x):
        return ops.add_(x, 1)

    def build(x):
        (result,) = ops.call(graph_of(inside, x), x)
        return x, result

    check(build, X, X + 1)


@pytest.mark.parametrize("kind", ["stream", "variable", "view"])
def test_by_reference_what_a_graph_writes_reaches_the_caller(kind):
    def build(x):
        x = variable() if kind == "variable" else x
        target = x.reshape_((4,)) if kind == "view" else x
        before = target + 0
        ops.call(graph_of(increase, target, target), target, target)
        return before, target, x

    check(build, X, 2 * X, 2 * X)


def test_by_reference_through_two_graphs():
    def outer(x: TensorByRef):
        ops.call(graph_of(increase, x, x), x, x)
        return x * 10

    def build(x):
        v = variable()
        (result,) = ops.call(graph_of(outer, v), v)
        return v, result

    check(build, 2 * X, 20 * X)


def test_a_call_site_can_make_an_input_by_reference():
    def inside(x):
        ops.add_(x, 1)

    def build(x):
        graph = graph_of(inside, x)
        ops.call(graph, x)
        untouched = x + 0
        ops.call_with_info(graph, x).set_parent_input_modified(x)
        return untouched, x

    check(build, X, X + 1)


def test_an_output_that_is_the_input_by_reference_is_a_value():
    def inside(x: TensorByRef):
        ops.add_(x, 1)
        return x

    def build(x):
        v = variable()
        (first,) = ops.call(graph_of(inside, v), v)
        ops.add_(v, 1)
        return first, v

    check(build, X + 1, X + 2)


def test_the_same_elements_by_reference_twice_are_refused():
    def both(a: TensorByRef, b: TensorByRef):
        ops.add_(a, b)

    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable(X, name="weights")
        view = v.reshape_((4,))
        ops.call(graph_of(both, v, v), v, view)
    with pytest.raises(ValueError, match="weights and reshape share their elements"):
        popxl.Session(ir)


def test_the_same_elements_by_reference_twice_may_be_read():
    def both(a: TensorByRef, b: TensorByRef):
        return a + b

    check(lambda x: ops.call(graph_of(both, x, x), x, x), 2 * X)


@pytest.mark.parametrize("condition", [True, False])
def test_branches_write_to_one_tensor_by_reference(condition):
    def double(x: TensorByRef):
        ops.add_(x, x)

    def zero(x: TensorByRef):
        ops.var_updates.copy_var_update_(x, x - x)

    def build(x):
        cond = popxl.constant(condition)
        ops.conditional(cond, graph_of(double, x), graph_of(zero, x), [x], [x])
        return x

    check(build, 2 * X if condition else 0 * X)


# --- loops ---


def test_a_loop_writes_by_reference_in_every_round():
    def build(x):
        ops.repeat(graph_of(increase, x, x), 5, x, popxl.constant(X))
        return x

    check(build, 6 * X)


def test_what_a_loop_writes_by_value_is_gone_in_the_next_round():
    def body(total, x):
        return total + ops.add_(x, 1)

    def build(x):
        (total,) = ops.repeat(graph_of(body, x, x), 3, x, x)
        return total, x

    check(build, X + 3 * (X + 1), X)


def test_carried_by_reference_inputs_are_fed_between_rounds():
    """After the last round the caller's tensor holds what that round left in its input."""

    def body(x: TensorByRef):
        return x * 2

    def build(x):
        (result,) = ops.repeat(graph_of(body, x), 3, x)
        return x, result

    check(build, 4 * X, 8 * X)


def test_carried_inputs_can_change_places():
    def body(a: TensorByRef, b: TensorByRef):
        return b, a

    def build(x):
        a, b = variable(), variable(-X)
        return (*ops.repeat(graph_of(body, a, b), 3, a, b), a, b)

    check(build, -X, X, X, -X)


def test_what_comes_out_of_a_loop_may_have_gone_in_two_rounds_before():
    """Rounds hand the variable's memory on from input to input; it is written to afterwards."""

    def body(a, b, c):
        return b, c

    def build(x):
        v = variable()
        first, second = ops.repeat(graph_of(body, x, x, x), 2, x, x, v)
        ops.add_(v, 100)
        return first, second, v

    check(build, X, X, X + 100)


def test_a_loop_without_rounds_leaves_what_it_could_have_written():
    def build(x):
        v = variable()
        copy = ops.identity(v)
        ops.repeat(graph_of(increase, copy, copy), 0, copy, copy)
        ops.add_(v, 1)
        return copy, v

    check(build, X, X + 1)


# --- the host ---


def test_host_arrays_are_never_written_to():
    ir = popxl.Ir(replication=2)
    grouped, constant, x, slot = np.stack([X, -X]), X.copy(), np.stack([X, X]), X.copy()
    with ir.main_graph:
        v = popxl.variable(grouped, replica_grouping=ir.replica_grouping(group_size=1))
        buffer = popxl.remote_buffer((4,), popxl.float32)
        popxl.remote_variable(slot, buffer)
        stream = popxl.h2d_stream((4,), popxl.float32)
        loaded = ops.host_load(stream)
        for target in (v, popxl.constant(constant), loaded):
            ops.add_(target, 1)
        cache = ops.remote_load(buffer, 0)
        ops.add_(cache, v)
        ops.remote_store(buffer, 0, cache)
        outputs = store([loaded, v, ops.remote_load(buffer, 0)])
    with popxl.Session(ir) as session:
        for _ in range(2):
            for output in session.run({stream: x}).values():
                output[...] = 99
        results = session.run({stream: x})
    np.testing.assert_array_equal(results[outputs[0]], x + 1)
    np.testing.assert_array_equal(results[outputs[1]], grouped + 3)
    np.testing.assert_array_equal(results[outputs[2]], X + 3 * grouped + 6)
    for array, before in [(grouped, [X, -X]), (constant, X), (x, [X, X]), (slot, X)]:
        np.testing.assert_array_equal(array, before)


def test_outputs_are_not_the_memory_of_inputs_or_constants():
    ir = popxl.Ir()
    x = X.copy()
    with ir.main_graph:
        stream = popxl.h2d_stream((4,), popxl.float32)
        outputs = store([ops.host_load(stream), popxl.constant(X)])
    with popxl.Session(ir) as session:
        for output in session.run({stream: x}).values():
            output += 1
        np.testing.assert_array_equal(x, X)
        np.testing.assert_array_equal(session.run({stream: x})[outputs[1]], X)
