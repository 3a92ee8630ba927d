"""Remote buffers of whole layers."""

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_addons import (
    Module,
    NamedRemoteBuffers,
    NamedTensors,
    VariableFactory,
    create_remote_buffer,
    load_remote,
    load_remote_graph,
    named_buffers,
    named_variable_buffers,
    store_remote,
    store_remote_graph,
)
from popxl_addons.initialisers import full
from popxl_addons.variable_factory import NamedVariableFactories


class Affine(Module):
    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        scale = self.add_variable_input("scale", full((), 1), x.dtype)
        return x * scale + self.add_variable_input("shift.value", full((), 0), x.dtype)


LAYERS = [(2.0, 1.0), (-3.0, 4.0), (0.5, -2.0)]


def _expected(x):
    for scale, shift in LAYERS:
        x = x * scale + shift
    return x


def _values(layers):
    return {
        variable: np.float32(value)
        for layer, (scale, shift) in zip(layers, LAYERS, strict=True)
        for variable, value in ((layer.scale, scale), (layer.shift.value, shift))
    }


def test_layers_run_one_after_the_other_from_one_graph(run, rng):
    x = rng.standard_normal((4,)).astype(np.float32)

    def build(x):
        factories, graph = Affine().create_graph(x)
        buffers = named_variable_buffers(factories, entries=3, shard_over_dict=False)
        layers = [factories.init_remote(buffers, i, f"layer.{i}") for i in range(3)]
        load, names = load_remote_graph(buffers, 3)
        for i in range(3):
            (x,) = graph.bind(NamedTensors.pack(names, load.call(i))).call(x)
        return x, _values(layers)

    np.testing.assert_allclose(run(build, x)[0], _expected(x), rtol=1e-6)


def test_layers_run_in_a_repeat_with_the_entry_counted_up(run, rng):
    x = rng.standard_normal((4,)).astype(np.float32)

    def build(x):
        factories, graph = Affine().create_graph(x)
        buffers = named_variable_buffers(factories, 3)
        layers = [factories.init_remote(buffers, i, f"layer.{i}") for i in range(3)]

        def phase(x, entry):
            load, names = load_remote_graph(buffers)
            (x,) = graph.bind(NamedTensors.pack(names, load.call(entry))).call(x)
            return x, entry + 1

        entry = popxl.constant(0, popxl.int32)
        body = popxl.gir().create_graph(phase, x, entry)
        return ops.repeat(body, 3, x, entry)[0], _values(layers)

    np.testing.assert_allclose(run(build, x)[0], _expected(x), rtol=1e-6)


def test_the_load_graph_takes_an_entry_and_gives_tensors_in_order_of_names(main_graph):
    factories, _ = Affine().create_graph(popxl.TensorSpec((4,), popxl.float32))

    graph, names = load_remote_graph(named_variable_buffers(factories))

    assert names == ["scale", "shift.value"]
    (entry,) = graph.graph.inputs
    assert (entry.shape, entry.dtype) == ((), popxl.int32)
    assert len(graph.graph.outputs) == 2


@pytest.mark.parametrize("graphs", [False, True])
def test_what_is_stored_is_what_is_loaded(run, rng, graphs):
    x = rng.standard_normal((2, 3)).astype(np.float32)

    def build(x):
        tensors = NamedTensors.from_dict({"a": x, "deep.b": x * 2})
        buffers = named_buffers(tensors, entries=2)
        entry = popxl.constant(1, popxl.int32)
        if graphs:
            store_remote_graph(buffers).bind(tensors).call(entry)
            load, names = load_remote_graph(buffers)
            loaded = NamedTensors.pack(names, load.call(1))
        else:
            store_remote(buffers, tensors, entry)
            loaded = load_remote(buffers, 1)
        return loaded.a, loaded.deep.b

    a, b = run(build, x)

    np.testing.assert_array_equal(a, x)
    np.testing.assert_array_equal(b, x * 2)


def test_io_tiles_change_nothing(run, rng):
    x = rng.standard_normal((3,)).astype(np.float32)

    def build(x):
        buffers = named_buffers(NamedTensors(x=x))
        store_remote(buffers, NamedTensors(x=x), 0, use_io_tiles=True)
        return load_remote(buffers, 0, use_io_tiles=True).x

    np.testing.assert_array_equal(run(build, x)[0], x)


def test_every_replica_loads_the_value_of_its_group(run):
    def build(x):
        ir = popxl.gir()
        pairs = ir.replica_grouping(stride=1, group_size=2)
        factory = VariableFactory(full((3,), 0), popxl.float32, "w", replica_grouping=pairs)
        factories = NamedVariableFactories(w=factory)
        buffers = named_variable_buffers(factories, entries=2, shard_over_dict=False)
        layers = [factories.init_remote(buffers, i) for i in range(2)]
        values = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
        data = {layer.w: value for layer, value in zip(layers, values, strict=True)}
        return x + load_remote(buffers, 1).w, data

    (y,) = run(build, np.zeros((4, 3), np.float32), replicas=4)

    assert y.tolist() == [[6, 7, 8], [6, 7, 8], [9, 10, 11], [9, 10, 11]]


def test_buffers_grow_to_the_entries_asked_for(main_graph):
    buffer = create_remote_buffer(popxl.TensorSpec((2,), popxl.float32), entries=2)
    buffers = NamedRemoteBuffers(w=buffer)

    load_remote_graph(buffers, entries=1)
    assert buffer.entries == 2
    store_remote_graph(buffers, entries=5)
    assert buffer.entries == 5
    assert (buffer.tensor_shape, buffer.tensor_dtype) == ((2,), popxl.float32)


@pytest.mark.parametrize("over", [0, 3, {"w": 5}])
def test_a_variable_cannot_be_spread_over_more_replicas_than_its_group_has(over):
    ir = popxl.Ir(replication=4)
    with ir.main_graph:
        pairs = ir.replica_grouping(stride=1, group_size=2)
        factory = VariableFactory(full((4,), 0), name="w", replica_grouping=pairs)

        for allowed in (True, False, 1, 2, {"w": 2}, {}):
            named_variable_buffers(NamedVariableFactories(w=factory), 1, allowed)
        with pytest.raises(ValueError, match="w can be sharded over 1 to 2 replicas"):
            named_variable_buffers(NamedVariableFactories(w=factory), 1, over)


def test_a_variable_without_a_buffer_is_named(main_graph):
    factories, _ = Affine().create_graph(popxl.TensorSpec((4,), popxl.float32))
    buffers = named_variable_buffers(factories)
    buffers.pop("shift")

    with pytest.raises(KeyError, match=r"shift\.value"):
        factories.init_remote(buffers)


def test_mapped_layers_outlive_the_program(run, tmp_path, rng):
    x = rng.standard_normal((4,)).astype(np.float32)

    def program(values):
        def build(x):
            factories, graph = Affine().create_graph(x)
            buffers = named_variable_buffers(factories, entries=3)
            layers = [
                factories.init_remote(buffers, i, f"layer.{i}", memmap_dir=str(tmp_path))
                for i in range(3)
            ]
            for i in range(3):
                (x,) = graph.bind(load_remote(buffers, i)).call(x)
            return x, _values(layers) if values else {}

        return build

    untouched = run(program(values=False), x)[0]
    np.testing.assert_allclose(untouched, x, rtol=1e-6)  # the files hold scale 1 and shift 0
    for i, (scale, shift) in enumerate(LAYERS):
        np.save(tmp_path / f"layer.{i}.scale.npy", np.float32(scale))
        np.save(tmp_path / f"layer.{i}.shift.value.npy", np.float32(shift))

    np.testing.assert_allclose(run(program(values=False), x)[0], _expected(x), rtol=1e-6)
