"""Graphs called, repeated and chosen between; what a call site connects."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import TensorByRef, TensorSpec, ops
from popxl_torch.lowering.graphs import Deferred
from programs import run_program

X = np.array([1, 2, 3], np.float32)
SPEC = TensorSpec((3,), popxl.float32)


# --- call ---


def test_calls_by_position_and_by_map():
    def fn(a, b, *, c):
        return a + 10 * b + 100 * c

    def build(x):
        graph = popxl.gir().create_graph(fn, x, x, c=x)
        a, b, c = graph.inputs
        two, three = x * 2, x * 3
        return [
            *ops.call(graph, x, two, three),
            *ops.call(graph, [x, two], three),
            *ops.call(graph, x, inputs_dict={c: three, b: two}),
            *ops.call(graph, inputs_dict={c: three, a: x, b: two}),
        ]

    for got in run_program(build, X):
        np.testing.assert_array_equal(got, 321 * X)


def test_numbers_become_constants_of_the_inputs_dtype():
    def build(x):
        graph = popxl.gir().create_graph(lambda a, b: a * b, x, TensorSpec((), popxl.float32))
        return ops.call(graph, x, 3)

    np.testing.assert_array_equal(run_program(build, X)[0], 3 * X)


def test_nested_calls():
    def inner(x):
        return x + 1

    def outer(x):
        (y,) = ops.call(popxl.gir().create_graph(inner, x), x)
        return y * 2, y

    def build(x):
        graph = popxl.gir().create_graph(outer, x)
        (a, b), (c, d) = ops.call(graph, x), ops.call(graph, x * 10)
        return a, b, c, d

    a, b, c, d = run_program(build, X)
    np.testing.assert_array_equal([a, b], [2 * (X + 1), X + 1])
    np.testing.assert_array_equal([c, d], [2 * (10 * X + 1), 10 * X + 1])


def test_a_call_site_maps_between_caller_and_graph(main_graph):
    graph = main_graph.ir.create_graph(lambda a, b: (b, a + b), SPEC, SPEC)
    x, y = popxl.variable(X), popxl.variable(X)
    info = ops.call_with_info(graph, x, y)
    assert info.called_graph is graph
    assert info.inputs == (x, y)
    for graph_tensor, parent in zip(graph.inputs, (x, y), strict=True):
        assert info.graph_to_parent(graph_tensor) is parent
        assert info.parent_to_graph(parent) is graph_tensor
    assert info.graph_to_parent(graph.outputs[1]) is info.outputs[1] is info.parent_output(1)
    assert info.parent_input(1) is y
    for index in (0, 1):
        assert info.graph_to_parent_input_index(info.parent_to_graph_input_index(index)) == index
        assert info.graph_to_parent_output_index(info.parent_to_graph_output_index(index)) == index
    with pytest.raises(ValueError, match="neither input nor output"):
        info.graph_to_parent(x)
    with pytest.raises(ValueError, match="is no input of the call"):
        info.parent_to_graph(info.outputs[0])
    with pytest.raises(ValueError, match="is no input of this call"):
        info.set_parent_input_modified(info.outputs[0])


# --- repeat ---


@pytest.mark.parametrize("count", [0, 1, 5])
def test_repeat_feeds_outputs_and_keeps_the_other_inputs(count):
    def body(total, power, x):
        return total + x, power * 2

    def build(x):
        graph = popxl.gir().create_graph(body, x, x, x)
        return ops.repeat(graph, count, x * 0, x, x)

    total, power = run_program(build, X)
    np.testing.assert_array_equal(total, count * X)
    np.testing.assert_array_equal(power, 2**count * X)


def test_repeat_without_outputs_runs_for_what_it_writes():
    def body(x: TensorByRef):
        ops.increment_mod_(x, 1, 100)

    def build(x):
        assert ops.repeat(popxl.gir().create_graph(body, x), 7, x) == ()
        return x

    np.testing.assert_array_equal(run_program(build, X)[0], X + 7)


def test_a_repeat_site_maps_between_caller_and_graph(main_graph):
    graph = main_graph.ir.create_graph(lambda a, b: a + b, SPEC, SPEC)
    x, y = popxl.variable(X), popxl.variable(X)
    info = ops.repeat_with_info(graph, 3, x, inputs_dict={graph.inputs[1]: y})
    assert info.called_graph is graph
    assert info.parent_to_graph(y) is graph.inputs[1]
    assert info.graph_to_parent(graph.outputs[0]) is info.outputs[0]


def test_a_graph_is_lowered_once_however_often_it_is_called():
    """Seventy layers compile as one."""
    seen = []

    def body(x):
        seen.append(x)
        return ops.call(inner[0], x)

    ir = popxl.Ir()
    with ir.main_graph:
        x = popxl.variable(X)
        inner = [ir.create_graph(lambda x: x + 1, x)]
        graph = ir.create_graph(body, x)
        for _ in range(3):
            (x,) = ops.repeat(graph, 70, x)
            (x,) = ops.call(graph, x)
    modules = popxl.Session(ir)._executor.main.modules()
    assert len(seen) == 1
    assert sum(isinstance(m, Deferred) for m in modules) == 3


# --- conditional ---


@pytest.mark.parametrize("condition", [True, False])
def test_conditional_takes_a_branch(condition):
    def build(c, x):
        ir = popxl.gir()
        then = ir.create_graph(lambda a: (a + 1, a), x)
        other = ir.create_graph(lambda a, b: (a - b, b), x, x)
        return ops.conditional(
            c, then, other, [x], else_inputs_dict=dict(zip(other.inputs, (x, x * 10), strict=True))
        )

    first, second = run_program(build, np.array(condition), X)
    np.testing.assert_array_equal(first, X + 1 if condition else -9 * X)
    np.testing.assert_array_equal(second, X if condition else 10 * X)


def test_only_the_branch_taken_runs():
    def work(buffer, value):
        ops.remote_store(buffer, 0, popxl.constant(value, popxl.float32))

    def build(c):
        ir, buffer = popxl.gir(), popxl.remote_buffer((), popxl.float32)
        graphs = [ir.create_graph(work, buffer, value) for value in (1, 2)]
        assert ops.conditional(c, *graphs) == ()
        return ops.remote_load(buffer, 0)

    assert [run_program(build, np.array(c))[0] for c in (True, False)] == [1, 2]


def test_replicas_take_branches_of_their_own():
    def double(x: TensorByRef, y):
        ops.add_(x, x)
        return y + 1

    def negative(x: TensorByRef, y):
        return -y

    def build(c, x):
        v = popxl.variable(X)
        graphs = [popxl.gir().create_graph(fn, v, x) for fn in (double, negative)]
        return (*ops.conditional(c, *graphs, [v, x], [v, x]), v)

    c, x = np.array([True, False, True, False]), np.stack([X * i for i in range(4)])
    result, variable = run_program(build, c, x, replicas=4)
    np.testing.assert_array_equal(result, np.where(c[:, None], x + 1, -x))
    np.testing.assert_array_equal(variable, np.where(c[:, None], 2 * X, X))


def test_replicas_that_differ_cannot_store_in_a_branch():
    def work(buffer):
        ops.remote_store(buffer, 0, popxl.constant(X))

    def build(c):
        buffer = popxl.remote_buffer((3,), popxl.float32)
        graphs = [popxl.gir().create_graph(work, buffer) for _ in range(2)]
        ops.conditional(c, *graphs)
        return c

    with pytest.raises(RuntimeError, match="replicas differ in the condition"):
        run_program(build, np.array([True, False]), replicas=2)


def test_a_conditional_site_maps_between_caller_and_branches(main_graph):
    ir = main_graph.ir
    then = ir.create_graph(lambda a: a + 1, SPEC)
    other = ir.create_graph(lambda a, b: a - b, SPEC, SPEC)
    c, (x, y, z) = popxl.variable(True), (popxl.variable(X) for _ in range(3))
    info = ops.conditional_with_info(c, then, other, [x], [y, z])
    assert info.called_graph == (then, other)
    assert info.inputs == (c, x, y, z)
    assert [info.is_parent_index_in_then_branch(i) for i in (1, 2, 3)] == [True, False, False]
    assert info.graph_to_parent_input_index(0) == 1
    assert info.graph_to_parent_input_index(1, then_branch=False) == 3
    assert [info.parent_to_graph_input_index(i) for i in (1, 2, 3)] == [0, 0, 1]
    assert info.graph_to_parent(then.inputs[0]) is x
    assert info.graph_to_parent(other.inputs[1]) is z
    assert info.parent_to_graph(y) is other.inputs[0]
    for branch in (then, other):
        assert info.graph_to_parent(branch.outputs[0]) is info.outputs[0]
    assert info.graph_to_parent_output_index(0) == info.parent_to_graph_output_index(0, False) == 0
    with pytest.raises(ValueError, match="input 0 of a conditional is its condition"):
        info.parent_to_graph(c)
    with pytest.raises(ValueError, match="neither input nor output of a branch"):
        info.graph_to_parent(x)
    with pytest.raises(ValueError, match="is no input of this conditional"):
        info.parent_to_graph(info.outputs[0])


def test_graphs_within_graphs():
    """A loop round a conditional round calls, on replicas that differ in data alone."""

    def halve(x):
        return x / 2

    def triple_and_one(x):
        (y,) = ops.repeat(popxl.gir().create_graph(lambda y, x: y + x, x, x), 2, x, x)
        return y + 1

    def step(n, x):
        ir = popxl.gir()
        even = ops.equal(n % 2, 0)
        graphs = [ir.create_graph(fn, x) for fn in (halve, triple_and_one)]
        return (n + 1, *ops.conditional(even, *graphs, [x], [x]))

    def build(x):
        zero = popxl.constant(0, popxl.int32)
        return ops.repeat(popxl.gir().create_graph(step, zero, x), 5, zero, x)[1]

    x = np.stack([X, 10 * X])
    (got,) = run_program(build, x, replicas=2)
    expected = x
    for n in range(5):
        expected = expected / 2 if n % 2 == 0 else 3 * expected + 1
    np.testing.assert_array_equal(got, expected)
