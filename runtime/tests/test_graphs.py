"""Graphs: what becomes an input and an output, and what tensors and graphs are called."""

from __future__ import annotations

from typing import List, Tuple  # noqa: UP035 - as PopXL programs annotate

import numpy as np
import popxl
import pytest
from popxl import TensorByRef, TensorSpec, ops

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


def test_name_scopes_nest_and_reach_into_graphs(main_graph):
    def fn(x):
        return ops.add(x, 1)

    with popxl.name_scope("outer"):
        with popxl.name_scope("inner"):
            assert popxl.constant(1, name="one").name == "outer/inner/one"
        assert popxl.variable(1, name="two").name == "outer/two"
        graph = main_graph.ir.create_graph(fn, SPEC)
    assert (graph.inputs[0].name, graph.outputs[0].name) == ("outer/x", "outer/add")
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
