"""Graphs with names for their inputs, and bound ones."""

import numpy as np
import popxl
import pytest
from popxl_addons import BoundGraph, GraphCache, GraphWithNamedArgs, NamedTensors

SCALAR = popxl.TensorSpec((), popxl.float32)


def _polynomial(x, a, b):
    return x * a + b, x - a


@pytest.fixture
def values(main_graph):
    return [popxl.constant(np.float32(i)) for i in (2, 3, 5)]


def _graph():
    graph = popxl.gir().create_graph(_polynomial, SCALAR, SCALAR, SCALAR)
    x, a, b = graph.inputs
    return GraphWithNamedArgs(graph, NamedTensors.from_dict({"a": a, "deep.b": b}))


def test_bound_tensors_go_to_the_inputs_of_their_names(run):
    def build(x):
        two, three = (popxl.constant(np.float32(i)) for i in (2, 3))
        tensors = NamedTensors.from_dict({"a": two, "deep.b": three, "unknown": two})
        return _graph().bind(tensors).call(x)

    outputs = run(build, np.array(10, np.float32))

    assert [float(y) for y in outputs] == [23, 8]


def test_arguments_of_a_call_win_over_bound_ones(run):
    def build(x):
        named = _graph()
        two, three = (popxl.constant(np.float32(i)) for i in (2, 3))
        bound = named.bind(NamedTensors(a=two)).bind({named.args.deep.b: two})
        return [
            bound.call(x)[0],
            bound.call(x, args={named.args.a: three})[0],
            bound.bind({named.args.deep.b: three}).call(x)[0],
            named.call(x, args={named.args.a: three, named.args.deep.b: three})[0],
        ]

    outputs = run(build, np.array(10, np.float32))

    assert [float(y) for y in outputs] == [22, 32, 23, 33]


def test_numbers_are_made_into_constants_of_the_inputs_dtype(run):
    def build(x):
        return _graph().call(10, [2.0, x])[0]

    assert float(run(build, np.array(3, np.float32))[0]) == 23


def test_too_many_inputs_are_refused(values):
    with pytest.raises(ValueError, match="has 3 inputs, 4 were given"):
        BoundGraph(_graph().graph).call(*values, values[0])


def test_an_input_without_a_tensor_is_refused(values):
    with pytest.raises(ValueError, match="b"):
        _graph().bind(NamedTensors(a=values[0])).call(values[1])


def test_subgraph_io_map_pairs_the_graphs_tensors_with_the_callers(values):
    named = _graph()
    bound = named.bind(NamedTensors(a=values[1]))
    info = bound.call_with_info(values[0], args={named.args.deep.b: values[2]})

    mapping = bound.subgraph_io_map(
        values[0], args={named.args.deep.b: values[2]}, outs=info.outputs
    )

    inputs, outputs = named.graph.inputs, named.graph.outputs
    assert mapping == dict(zip((*inputs, *outputs), (*values, *info.outputs), strict=True))


def test_a_copy_shares_the_graph_and_not_the_names(values):
    named = _graph()
    twin = named.copy()
    twin.args.pop("a")

    assert twin.graph is named.graph
    assert named.args.keys_flat() == ["a", "deep.b"]


def test_gradient_graphs_are_refused(values):
    with pytest.raises(NotImplementedError, match="forward only"):
        GraphWithNamedArgs(_graph().graph, grad_graph_info=object())


def test_a_cache_tells_functions_and_places_apart(values):
    class Layer:
        def __init__(self, size):
            self.size = size

        def __call__(self, x, a):
            return x + a * self.size

        def __hash__(self):
            return hash(self.size)

    cache = GraphCache()
    arguments = (SCALAR, SCALAR)
    added = cache.create_graph(lambda x, a: x + a, *arguments)
    layer = cache.create_graph(Layer(2), *arguments)

    assert cache.create_graph(lambda x, a: x - a, *arguments) is not added
    assert cache.create_graph(Layer(2), *arguments) is layer
    assert cache.create_graph(Layer(3), *arguments) is not layer
    with popxl.ipu(1):
        assert cache.create_graph(Layer(2), *arguments) is not layer


def test_a_cache_does_not_keep_programs_alive():
    import gc
    import weakref

    cache = GraphCache()
    ir = popxl.Ir()
    with ir.main_graph:
        first = cache.create_graph(_polynomial, SCALAR, SCALAR, SCALAR)
        assert cache.create_graph(_polynomial, SCALAR, SCALAR, SCALAR) is first
    program = weakref.ref(ir)
    del ir, first
    gc.collect()

    assert program() is None


def test_a_schedule_is_text_with_the_names_of_inputs(main_graph):
    lines = _graph().print_schedule().splitlines()

    assert lines[1:] == [
        "  (%1, a=%2, deep.b=%3) -> (%5, %6) {",
        "    mul (%1 [() float32], %2 [() float32]) -> (%4 [() float32])",
        "    add (%4 [() float32], %3 [() float32]) -> (%5 [() float32])",
        "    sub (%1 [() float32], %2 [() float32]) -> (%6 [() float32])",
        "  }",
    ]
