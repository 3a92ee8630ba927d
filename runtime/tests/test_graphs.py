"""Graphs: what becomes an input, how they are called, repeated and chosen between."""

from __future__ import annotations

from typing import List, Tuple  # noqa: UP035 - as PopXL programs annotate

import numpy as np
import popxl
import pytest
from popxl import TensorByRef, TensorSpec, ops
from programs import run_program

X = np.array([1, 2, 3], np.float32)
SPEC = TensorSpec((3,), popxl.float32)


def names(graph: popxl.Graph) -> list[str]:
    return [t.name for t in graph.inputs]


def by_ref(graph: popxl.Graph) -> list[bool]:
    """Which inputs are by reference, as a program sees it: a call writes to the caller's tensor."""
    return [t in graph._by_ref_inputs for t in graph.inputs]


# --- create_graph ---


def test_tensors_and_specs_become_inputs_of_their_shape_and_dtype(main_graph):
    def fn(a, b, scale):
        assert (a.shape, a.dtype) == ((2,), popxl.int32)
        assert (b.shape, b.dtype, b.meta_shape) == ((3, 4), popxl.float16, (24,))
        assert scale == 7
        return a

    given = popxl.constant([1, 2])
    graph = main_graph.ir.create_graph(fn, given, TensorSpec((3, 4), popxl.float16, (24,)), 7)
    assert names(graph) == ["a", "b"]
    assert given not in graph
    assert graph.inputs[0] in graph
    assert graph.outputs == (graph.inputs[0],)


def test_lists_and_variable_arguments_become_inputs(main_graph):
    def fn(first, many, *rest, option=None, **named):
        assert isinstance(many, list)
        assert (len(many), len(rest), option, sorted(named)) == (2, 2, "on", ["bias", "weight"])
        return [first, *many, *rest, named["weight"], named["bias"]]

    graph = main_graph.ir.create_graph(
        fn, SPEC, (SPEC, SPEC), SPEC, SPEC, option="on", weight=SPEC, bias=SPEC
    )
    assert names(graph) == ["first", "many_0", "many_1", "rest_0", "rest_1", "weight", "bias"]
    assert len(graph.outputs) == 7


def test_keyword_arguments_come_in_the_order_of_the_signature(main_graph):
    graph = main_graph.ir.create_graph(lambda a, b, c=3: None, b=SPEC, a=SPEC)
    assert names(graph) == ["a", "b"]


def test_other_collections_are_passed_on(main_graph):
    def fn(x, sizes, table, nothing=()):
        assert (sizes, table, nothing) == ([1, 2], {"spec": SPEC}, ())

    graph = main_graph.ir.create_graph(fn, SPEC, [1, 2], {"spec": SPEC})
    assert names(graph) == ["x"]


@pytest.mark.parametrize(
    "arguments, keywords", [(([SPEC, 1],), {}), ((SPEC, 1), {}), ((), {"a": SPEC, "b": 1})]
)
def test_tensors_mixed_with_other_things_are_refused(main_graph, arguments, keywords):
    def in_list(values):
        pass

    def variadic(*values, **named):
        pass

    fn = in_list if len(arguments) == 1 else variadic
    with pytest.raises(TypeError, match="argument (values|named) mixes tensors"):
        main_graph.ir.create_graph(fn, *arguments, **keywords)


def test_annotations_make_inputs_by_reference(main_graph):
    def fn(a: TensorByRef, b, c: List[TensorByRef], d: Tuple[TensorByRef], e: list[TensorByRef]):  # noqa: UP006
        pass

    graph = main_graph.ir.create_graph(fn, SPEC, SPEC, [SPEC, SPEC], (SPEC,), [SPEC])
    assert by_ref(graph) == [True, False, True, True, True, True]


def test_annotations_may_name_what_is_not_there(main_graph):
    def fn(a: popxl.TensorByRef, b: NotImported, c: popxl.Tensor):  # noqa: F821
        pass

    graph = main_graph.ir.create_graph(fn, SPEC, SPEC, SPEC)
    assert by_ref(graph) == [True, False, False]


def test_graph_inputs_made_inside_come_after_the_arguments(main_graph):
    def fn(a):
        w = popxl.graph_input((2, 2), popxl.float16, "w")
        b = popxl.graph_input((), popxl.int32, by_ref=True, meta_shape=(8,))
        assert b.meta_shape == (8,)
        return a, w

    graph = main_graph.ir.create_graph(fn, SPEC)
    assert names(graph) == ["a", "w", "input"]
    assert by_ref(graph) == [False, False, True]
    assert graph.inputs_by_name["w"].shape == (2, 2)


class Scaled(popxl.Module):
    def build(self, x: popxl.Tensor, factor: float = 2.0) -> popxl.Tensor:
        self.bias = popxl.graph_input(x.shape, x.dtype, "bias")
        return x * factor + self.bias


def test_a_module_stands_for_its_build(main_graph):
    module = Scaled()
    graph = main_graph.ir.create_graph(module, SPEC, factor=3.0)
    assert names(graph) == ["x", "bias"]
    assert graph.name == "Scaled_0"
    assert module.bias in graph


@pytest.mark.parametrize("output", ["none", "one", "tuple", "iterator"])
def test_what_a_function_returns_becomes_the_outputs(main_graph, output):
    made = {
        "none": lambda x: None,
        "one": lambda x: x,
        "tuple": lambda x: (x, x + 1),
        "iterator": lambda x: (x * i for i in range(3)),
    }
    graph = main_graph.ir.create_graph(made[output], SPEC)
    assert len(graph.outputs) == {"none": 0, "one": 1, "tuple": 2, "iterator": 3}[output]


def test_functions_that_cannot_be_a_graph_are_refused(main_graph):
    create = main_graph.ir.create_graph
    with pytest.raises(TypeError, match="needs a function or a popxl.Module, got 3"):
        create(3)
    with pytest.raises(ValueError, match=r"create_graph\(.*\): missing a required argument: 'x'"):
        create(lambda x: x)
    with pytest.raises(ValueError, match="must return None, a tensor or an iterable.*got int"):
        create(lambda x: 3, SPEC)
    with pytest.raises(ValueError, match="got str"):
        create(lambda x: [x, "y"], SPEC)
    with pytest.raises(NotImplementedError, match="Module has no build"):
        create(popxl.Module(), SPEC)


def test_graphs_of_one_function_have_names_of_their_own(main_graph):
    def layer(x):
        return x

    ir = main_graph.ir
    found = [ir.create_graph(layer, SPEC) for _ in range(2)] + [ir.create_empty_graph("layer")]
    assert len({g.name for g in found}) == 3
    assert all("layer" in g.name and "<locals>" not in g.name for g in found)
    assert found[0].id == found[0].name
    assert main_graph.name == ""


def test_an_empty_graph_is_filled_when_it_is_current(main_graph):
    graph = main_graph.ir.create_empty_graph()
    with graph:
        x = popxl.graph_input((3,), popxl.float32, "x")
        popxl.graph_output(x + 1)
    assert (len(graph.inputs), len(graph.outputs)) == (1, 1)
    assert popxl.gcg() is main_graph


# --- tensors and their names ---


def test_tensors_have_names_and_ids_of_their_own(main_graph):
    def fn(x):
        return x + x + x

    graph = main_graph.ir.create_graph(fn, SPEC)
    v = [popxl.variable(X, name="weight") for _ in range(3)]
    all_ids = [t.id for t in (*graph.tensors, *main_graph.tensors)]
    assert len(set(all_ids)) == len(all_ids)
    assert [t.name for t in v] == ["weight", "weight__1", "weight__2"]
    assert v[0].id == "weight"
    assert graph.inputs[0].id == f"{graph.name}/x"
    assert graph.inputs[0].scope == graph.name
    assert graph.get_tensor("x") is graph.get_tensor(f"{graph.name}/x") is graph.inputs[0]
    with pytest.raises(ValueError, match="has no tensor 'y'"):
        graph.get_tensor("y")


def test_name_scopes_nest_and_end_at_graphs(main_graph):
    def fn(x):
        return ops.add(x, 1)

    with popxl.name_scope("outer"):
        with popxl.name_scope("inner"):
            assert popxl.constant(1, name="one").name == "outer.inner.one"
        assert popxl.variable(1, name="two").name == "outer.two"
        graph = main_graph.ir.create_graph(fn, SPEC)
    assert graph.outputs[0].name == "add"
    assert popxl.constant(1, name="three").name == "three"


def test_tensors_tell_what_they_are(main_graph):
    t = popxl.constant(np.zeros((2, 3, 4), np.float16))
    assert (t.shape, t.rank, t.nelms, len(t), t.dtype) == ((2, 3, 4), 3, 24, 2, popxl.float16)
    assert t.strides() == np.zeros((2, 3, 4), np.float16).strides
    assert t.strides((5, 4)) == (8, 2)
    assert t.ir is main_graph.ir
    assert t.spec == TensorSpec((2, 3, 4), popxl.float16)
    assert "float16" in repr(t)


def test_graphs_list_what_is_in_them(main_graph):
    def fn(x):
        return x + popxl.constant(X)

    v = popxl.variable(X)
    graph = main_graph.ir.create_graph(fn, SPEC)
    ops.call(graph, v)
    ops.call(graph, v)
    assert main_graph.called_graphs == (graph,)
    assert main_graph.variables == (v,)
    assert graph.variables == ()
    assert len(graph.constants) == 1
    assert graph.main_graph is main_graph
    assert graph.ir is main_graph.ir


def test_the_current_graph_is_the_innermost(main_graph):
    assert popxl.gcg() is popxl.gmg() is main_graph
    assert popxl.gir() is main_graph.ir

    def fn(x):
        assert popxl.gcg() is not main_graph
        assert popxl.gmg() is main_graph

    main_graph.ir.create_graph(fn, SPEC)
    assert popxl.get_current_graph() is main_graph


def test_contexts_may_be_used_as_on_an_ipu():
    with popxl.in_sequence(), popxl.in_sequence(False), popxl.io_tiles():
        pass


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
    main = popxl.Session(ir)._engine.main
    modules = [m for m in main.modules() if type(m).__name__ == "GraphModule" or "fx" in str(type(m))]
    assert len(seen) == 1
    assert len(modules) == 3


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
