"""Modules whose variables are spread over replicas: gathered to compute with, reduced in parts."""

from __future__ import annotations

import numpy as np
import popxl
import popxl_addons as addons
import pytest
from popxl import ops
from popxl_addons import NamedTensors, rts
from popxl_addons.named_replica_grouping import NamedReplicaGrouping
from popxl_addons.remote import create_remote_buffer, named_buffers, named_variable_buffers


class Affine(addons.Module):
    """`x * scale + shift`, the scale given in parts where it is sharded."""

    def __init__(self, sharded: bool, grouping: popxl.ReplicaGrouping | None = None):
        super().__init__()
        self.sharded, self.grouping = sharded, grouping

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        add = self.add_variable_input
        if self.sharded:
            add = self.add_replica_sharded_variable_input
        scale = add("scale", values(2), popxl.float32, replica_grouping=self.grouping)
        shift = self.add_variable_input("shift", values(3), popxl.float32)
        if scale.meta_shape:
            scale = rts.gather_replica_sharded_tensor(scale, replica_group=self.grouping)
        return x * scale + shift


def values(n: int):
    return lambda: np.full((2, 3), n, np.float32)


@pytest.mark.parametrize("over", [True, 4, 2, {"scale": 4, "shift": 1}, {}, False])
def test_layers_in_remote_buffers_are_gathered_as_they_are_loaded(run, rng, over):
    x = rng.normal(size=(4, 2, 3)).astype(np.float32)
    scales = rng.normal(size=(3, 2, 3)).astype(np.float32)

    def build(x):
        ir = popxl.gir()
        factories, graph = Affine(sharded=False).create_graph(x)
        buffers = named_variable_buffers(factories, 3, over)
        layers = [factories.init_remote(buffers, i, f"layer.{i}") for i in range(3)]
        load, names = addons.load_remote_graph(buffers)
        loaded = NamedTensors.pack(names, load.call(0))
        size = 2 if over == 2 else 4
        groups = NamedReplicaGrouping.build_groups(names, ir.replica_grouping(group_size=size))
        gather, names = rts.all_gather_replica_sharded_graph(loaded, replica_groups=groups)
        for i in range(3):
            loaded = NamedTensors.pack(names, load.call(i))
            (x,) = graph.bind(NamedTensors.pack(names, gather.bind(loaded).call())).call(x)
        return x, {layer.scale: s for layer, s in zip(layers, scales, strict=True)}

    (y,) = run(build, x, replicas=4)

    expected = x
    for scale in scales:
        expected = expected * scale + 3
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_a_module_takes_a_part_and_its_factory_makes_wholes(run, rng):
    x = rng.normal(size=(4, 2, 3)).astype(np.float32)
    whole = rng.normal(size=(2, 2, 3)).astype(np.float32)

    def build(x):
        pairs = popxl.gir().replica_grouping(group_size=2)
        factories, graph = Affine(sharded=True, grouping=pairs).create_graph(x)
        assert (factories.scale.shape, factories.scale.meta_shape) == ((3,), (2, 3))
        assert (graph.args.scale.shape, graph.args.scale.meta_shape) == ((3,), (2, 3))
        variables = factories.init()
        assert variables.scale.shape == (2, 3)
        part = ops.collectives.replica_sharded_slice(variables.scale, pairs)
        bound = graph.bind(NamedTensors(scale=part, shift=variables.shift))
        buffers = named_variable_buffers(factories, shard_over_dict={"shift": 1})
        remote = factories.init_remote(buffers, prefix="remote")
        loaded = addons.load_remote(buffers)
        assert loaded.scale.meta_shape == (2, 3)
        values = {variables.scale: whole, remote.scale: whole * 2}
        return [*bound.call(x), *graph.bind(loaded).call(x)], values

    both = run(build, x, replicas=4)

    of_replica = whole[[0, 0, 1, 1]]
    np.testing.assert_allclose(both[0], x * of_replica + 3, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both[1], x * of_replica * 2 + 3, rtol=1e-5, atol=1e-6)


SHAPES = {"even": (4, 2), "odd": (3,)}


@pytest.mark.parametrize("op", ["add", "mean"])
@pytest.mark.parametrize(("reduced", "parts"), [(4, 4), (4, 2), (2, 2), (4, 1), (1, 2)])
@pytest.mark.parametrize("graph", [False, True])
def test_a_reduction_is_split_where_it_can_be(run, rng, op, reduced, parts, graph):
    arrays = {n: rng.normal(size=(4, *shape)).astype(np.float32) for n, shape in SHAPES.items()}

    def build(even, odd):
        tensors = NamedTensors(even=even, odd=odd)
        group = popxl.gir().replica_grouping(group_size=reduced)
        shards = popxl.gir().replica_grouping(group_size=parts)
        if graph:
            named = NamedReplicaGrouping.build_groups(list(SHAPES), shards)
            made, names = rts.reduce_replica_sharded_graph(tensors, op, True, named, group)
            results = NamedTensors.pack(names, made.bind(tensors).call())
        else:
            results = tensors.map(lambda t: rts.reduce_replica_sharded_tensor(t, op, group, shards))
        assert results.even.meta_shape == ((4, 2) if parts > 1 else ())
        return [results.even, results.odd]

    even, odd = run(build, *arrays.values(), replicas=4)

    whole = {n: summed(a, reduced, op) for n, a in arrays.items()}
    np.testing.assert_allclose(odd, whole["odd"], rtol=1e-5)
    flat = whole["even"].reshape(4, -1)
    own = [np.split(flat[r], parts)[r % parts] for r in range(4)]
    np.testing.assert_allclose(even.reshape(4, -1), own, rtol=1e-5, atol=1e-6)


def summed(x: np.ndarray, size: int, op: str) -> np.ndarray:
    groups = x.reshape(-1, size, *x.shape[1:])
    total = groups.sum(1) if op == "add" else groups.mean(1)
    return np.repeat(total, size, axis=0)


def test_specs_of_parts():
    with popxl.Ir(replication=4).main_graph as graph:
        pairs = graph.ir.replica_grouping(group_size=2)
        alone = graph.ir.replica_grouping(group_size=1)
        even, odd = (popxl.variable(np.zeros(s, np.float32)) for s in ((3, 2), (3, 3)))
        assert rts.replica_sharded_spec(even, pairs) == popxl.TensorSpec(
            (3,), popxl.float32, (3, 2)
        )
        assert rts.replica_sharded_spec(even, alone) == even.spec
        assert rts.replica_sharded_spec(odd, pairs) == odd.spec
        part = ops.collectives.replica_sharded_slice(even, pairs)
        assert rts.replica_sharded_spec(part, pairs) == part.spec
        assert rts.gather_replica_sharded_tensor(even, use_io_tiles=True).shape == (3, 2)


def test_buffers_of_parts():
    with popxl.Ir(replication=4).main_graph as graph:
        pairs = graph.ir.replica_grouping(group_size=2)
        spec = popxl.TensorSpec((3, 2), popxl.float32)
        for group, over, shape, whole in [
            (pairs, None, (3,), (3, 2)),
            (None, None, (2,), (3, 2)),
            (pairs, 1, (3, 2), ()),
        ]:
            buffer = create_remote_buffer(spec, 2, group, over)
            assert (buffer.tensor_shape, buffer.meta_shape) == (shape, whole)
        part = ops.collectives.replica_sharded_slice(popxl.variable(np.zeros((3, 2))), pairs)
        assert named_buffers(NamedTensors(part=part)).part.meta_shape == (3, 2)


def test_what_is_stored_in_parts_is_loaded_in_parts(run, rng):
    x = rng.normal(size=(4, 2, 4)).astype(np.float32)

    def build(x):
        part = ops.collectives.replica_sharded_slice(x)
        tensors = NamedTensors(part=part)
        buffers = named_buffers(tensors, entries=2)
        addons.store_remote_graph(buffers).bind(tensors).call(1)
        load, names = addons.load_remote_graph(buffers)
        loaded = NamedTensors.pack(names, load.call(1))
        gather, names = rts.all_gather_replica_sharded_graph(loaded, use_io_tiles=True)
        return gather.bind(loaded).call()

    (whole,) = run(build, np.stack([x[0]] * 4), replicas=4)

    np.testing.assert_array_equal(whole, np.stack([x[0]] * 4))
