"""Modules: names of variables, graphs that are shared, state that is not kept."""

import numpy as np
import popxl
import pytest
from popxl_addons import Module, VariableFactory
from popxl_addons.initialisers import full
from popxl_addons.layers import Linear

X = popxl.TensorSpec((2, 3), popxl.float32)


class Scale(Module):
    """Multiplies by a variable."""

    def __init__(self, value, cache=False):
        super().__init__(cache=cache)
        self.value = value

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        return x * self.add_variable_input("scale", full((), self.value), x.dtype)


class Block(Module):
    """Two layers below each other, of which one has parts."""

    def __init__(self):
        super().__init__()
        self.first = Scale(2)
        self.inner = Module.from_list([Scale(3), Scale(5)])

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        x = self.first(x)
        for layer in self.inner:
            x = layer(x)
        return x + self.add_variable_input("shift", full((), 1), x.dtype)


def test_variables_are_named_by_the_attributes_on_the_way(main_graph):
    factories, graph = Block().create_graph(X)

    names = ["shift", "first.scale", "inner.0.scale", "inner.1.scale"]
    assert factories.keys_flat() == names
    assert graph.args.keys_flat() == names
    assert set(graph.args.values_flat()) <= set(graph.graph.inputs)
    assert graph.args.first.scale.name == "first/scale"


def test_a_graph_with_its_variables_computes_what_build_says(run, rng):
    x = rng.standard_normal((2, 3)).astype(np.float32)

    def build(x):
        factories, graph = Block().create_graph(x)
        return graph.bind(factories.init()).call(x)[0]

    (y,) = run(build, x)

    np.testing.assert_allclose(y, x * 30 + 1, rtol=1e-6)


def test_one_graph_is_called_with_variables_of_several_layers(run, rng):
    class Stack(Module):
        def __init__(self):
            super().__init__()
            self.layer = Scale(1)

        def build(self, x):
            factories, graph = self.layer.create_graph(x)
            for i in range(3):
                (x,) = graph.bind(self.add_variable_inputs(i, factories)).call(x)
            return x

    made = {}

    def build(x):
        factories, graph = Stack().create_graph(x)
        made["graph"], made["variables"] = graph.graph, factories.init()
        values = (2, 3, 7)
        data = {made["variables"][i].scale: np.float32(v) for i, v in enumerate(values)}
        return graph.bind(made["variables"]).call(x)[0], data

    x = rng.standard_normal((2, 3)).astype(np.float32)
    (y,) = run(build, x)

    np.testing.assert_allclose(y, x * 42, rtol=1e-6)
    assert made["variables"].keys_flat() == ["0.scale", "1.scale", "2.scale"]
    assert len(made["graph"].called_graphs) == 1


def test_call_module_names_variables_after_the_module(run, rng):
    class Outer(Module):
        def build(self, x, factor):
            (x,) = self.call_module(Scale(2))(x=x * factor)
            (x,) = self.call_module(Scale(3), "second", autodiff="none")(x)
            return x

    seen = []

    def build(x):
        factories, graph = Outer().create_graph(x, 2.0)
        seen.extend(factories.keys_flat())
        return graph.bind(factories.init()).call(x)[0]

    x = rng.standard_normal((2, 3)).astype(np.float32)

    np.testing.assert_allclose(run(build, x)[0], x * 12, rtol=1e-6)
    assert seen == ["Scale.scale", "second.scale"]


def test_a_module_keeps_nothing_between_graphs(main_graph):
    block = Block()

    first, first_graph = block.create_graph(X)
    second, second_graph = block.create_graph(X)

    assert first.keys_flat() == second.keys_flat()
    assert first_graph.graph != second_graph.graph
    assert first.first.scale is not second.first.scale


def test_a_failed_build_leaves_nothing_behind(main_graph):
    class Fails(Module):
        def __init__(self):
            super().__init__()
            self.fail = True

        def build(self, x):
            y = x * self.add_variable_input("scale", full((), 1), x.dtype)
            if self.fail:
                raise RuntimeError("half way")
            return y

    module = Fails()
    with pytest.raises(RuntimeError, match="half way"):
        module.create_graph(X)
    module.fail = False

    assert module.create_graph(X)[0].keys_flat() == ["scale"]


def test_a_graph_made_inside_build_keeps_what_was_built_before(main_graph):
    class Both(Module):
        def __init__(self):
            super().__init__()
            self.layer = Scale(2)

        def build(self, x):
            x = self.layer(x)
            factories, graph = self.layer.create_graph(x)
            return graph.bind(self.add_variable_inputs("again", factories)).call(x)[0]

    factories, _ = Both().create_graph(X)

    assert factories.keys_flat() == ["again.scale", "layer.scale"]


def test_a_module_called_twice_in_one_graph_needs_another_name(main_graph):
    class Twice(Module):
        def __init__(self):
            super().__init__()
            self.layer = Scale(2)

        def build(self, x):
            return self.layer(self.layer(x))

    with pytest.raises(ValueError, match="'scale' already exists"):
        Twice().create_graph(X)


@pytest.fixture
def scale():
    """A cached module that was used in another program before."""
    module = Scale(2, cache=True)
    with popxl.Ir().main_graph:
        module.create_graph(X)
    return module


def test_cached_graphs_are_shared_by_calls_of_one_shape_and_dtype(scale, main_graph):
    module = scale

    factories, graph = module.create_graph(X)
    same_factories, same = module.create_graph(popxl.TensorSpec((2, 3), popxl.float32))

    assert same.graph is graph.graph
    assert same_factories.scale is factories.scale
    assert same_factories is not factories
    assert module.create_graph(popxl.TensorSpec((2, 4), popxl.float32))[1].graph != graph.graph
    assert module.create_graph(popxl.TensorSpec((2, 3), popxl.float16))[1].graph != graph.graph
    assert graph.graph.ir is main_graph.ir


def test_other_arguments_count_in_the_cache_by_value(main_graph):
    class Power(Module):
        def build(self, x, exponent=2, *, names=()):
            return popxl.ops.pow(x, exponent)

    module = Power(cache=True)
    graph = module.create_graph(X)[1].graph

    assert module.create_graph(X, 2)[1].graph is graph
    assert module.create_graph(X, exponent=3)[1].graph is not graph
    assert module.create_graph(X, 2.0)[1].graph is not graph
    with pytest.raises(TypeError, match="names is a set, which is not hashable"):
        module.create_graph(X, names={"a"})


def test_a_list_of_modules_is_indexed_and_iterated(main_graph):
    layers = [Scale(1), Scale(2)]
    module = Module.from_list(layers)

    assert list(module) == layers
    assert module[1] is module.get("1") is layers[1]
    with pytest.raises(TypeError, match="Scale was not made by Module.from_list"):
        iter(layers[0])


def test_a_sub_module_that_is_replaced_leaves_the_names(main_graph):
    block = Block()
    block.first = Linear(3, bias=False)
    assert block.create_graph(X)[0].keys_flat()[1] == "first.weight"

    block.first = lambda x: x
    assert block.create_graph(X)[0].keys_flat() == ["shift", "inner.0.scale", "inner.1.scale"]


def test_from_variable_factories_makes_numbered_inputs(main_graph):
    class Uses(Module):
        def build(self, x, factories):
            self.parts = Module.from_variable_factories(factories)
            return x * self.parts[0] + self.parts[1]

    inputs = [VariableFactory(full((), value), popxl.float32, "unused") for value in (2, 3)]
    factories, graph = Uses().create_graph(X, inputs)

    assert factories.keys_flat() == ["parts.0", "parts.1"]
    assert len(graph.graph.inputs) == 3


def test_add_variable_factory_takes_the_factorys_name(main_graph):
    class Uses(Module):
        def build(self, x, factory, name):
            return x + self.add_variable_factory(factory, name)

    factory = VariableFactory(full((), 2), popxl.float32, "own")

    assert Uses().create_graph(X, factory, None)[0].own is factory
    assert Uses().create_graph(X, factory, "given")[0].given is factory
    factory.name = None
    with pytest.raises(ValueError, match="has no name"):
        Uses().create_graph(X, factory, None)


def test_overwrite_merges_variables_under_one_name(main_graph):
    class Merges(Module):
        def build(self, x, factories, overwrite):
            self.add_variable_input("layer.shift", full((), 1), x.dtype)
            self.add_variable_inputs("layer", factories, overwrite)
            return x

    factories, _ = Scale(2).create_graph(X)

    merged, _ = Merges().create_graph(X, factories, True)
    assert merged.keys_flat() == ["layer.shift", "layer.scale"]
    with pytest.raises(ValueError, match="'layer' already exists"):
        Merges().create_graph(X, factories, False)


def test_names_that_are_negative_numbers_are_refused(main_graph):
    class Uses(Module):
        def build(self, x, factories):
            self.add_variable_inputs(-1, factories)

    factories, _ = Scale(2).create_graph(X)

    with pytest.raises(ValueError, match="-1"):
        Uses().create_graph(X, factories)


def test_a_module_that_forgets_its_base_is_told(main_graph):
    class Forgets(Module):
        def __init__(self):
            self.layer = Scale(1)

    with pytest.raises(RuntimeError, match=r"Forgets.__init__ must call super\(\).__init__\(\)"):
        Forgets()


def test_what_asks_for_gradients_is_refused(main_graph):
    class Outer(Module):
        def build(self, x, **asked):
            return self.call_module(Scale(2), **asked)(x)

    for asked in ({"autodiff": "autodiff"}, {"grads_required": [X]}, {"grads_provided": [X]}):
        with pytest.raises(NotImplementedError, match="forward only"):
            _call_module(**asked)
    with pytest.raises(ValueError, match="got 'never'"):
        Module(grad_inlining_error="never")


def _call_module(**asked):
    return Module().call_module(Scale(2), **asked)


def test_a_module_with_its_own_gradient_graph_is_not_cached():
    class Layer(Module):
        def build_grad(self, *gradients):
            return gradients

    with pytest.raises(ValueError, match="Layer has a build_grad.*cache=False"):
        Layer(cache=True)
    assert Layer()


def test_a_module_without_parts_need_not_call_its_base(main_graph):
    class Plus(Module):
        def __init__(self, value):
            self.value = value

        def build(self, x: popxl.Tensor) -> popxl.Tensor:
            return x + self.value

    graph = main_graph.ir.create_graph(Plus(1), X)

    assert graph.outputs[0].shape == (2, 3)


def test_variables_cannot_be_put_below_a_taken_name_unasked(main_graph):
    class Pair(Module):
        def build(self, x: popxl.Tensor) -> popxl.Tensor:
            first = self.add_variable_input("scale.first", full((), 1), x.dtype)
            return x * first * self.add_variable_input("scale.second", full((), 1), x.dtype)

    with pytest.raises(ValueError, match="'scale' already exists"):
        Pair().create_graph(X)


def test_what_build_keeps_for_gradients_is_only_kept(main_graph):
    class Scaled(Module):
        def build(self, x: popxl.Tensor) -> popxl.Tensor:
            self.aux["x"] = x
            with pytest.raises(KeyError, match="only be read in build_grad"):
                self.aux["x"]
            return x * 2

        def build_grad(self, dy: popxl.Tensor) -> popxl.Tensor:
            raise NotImplementedError

    _, graph = Scaled().create_graph(X)

    assert graph.graph.outputs[0].shape == (2, 3)
