"""Batch serialisation: a graph run for one part of a batch after the other."""

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_addons import (
    GraphWithNamedArgs,
    Module,
    RemoteHandle,
    batch_serial_buffer,
    batch_serialise,
)
from popxl_addons.initialisers import full

STEPS, SHAPE = 3, (2, 4)


class Scaled(Module):
    """Multiplies by a variable of 3."""

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        return x * self.add_variable_input("scale", full((), 3), x.dtype)


def _parts(rng):
    return rng.standard_normal((STEPS, *SHAPE)).astype(np.float32)


def _run(ir, inputs, replicas=1):
    ir.num_host_transfers = STEPS
    with popxl.Session(ir, "cpu") as session:
        return session.run(inputs)


def _streams():
    return (
        popxl.h2d_stream(SHAPE, popxl.float32, name="x"),
        popxl.d2h_stream(SHAPE, popxl.float32, name="y"),
    )


@pytest.mark.parametrize("io_mode", ["compute", "io", "io_overlapped"])
def test_each_part_goes_from_stream_to_stream(rng, io_mode):
    ir = popxl.Ir()
    with ir.main_graph:
        x, y = _streams()
        factories, graph = Scaled().create_graph(x.spec)
        result = batch_serialise(
            graph,
            STEPS,
            {graph.graph.inputs[0]: x},
            {graph.graph.outputs[0]: y},
            {},
            io_mode=io_mode,
        )
        result.graph.bind(factories.init()).call(0)
    parts = _parts(rng)

    np.testing.assert_allclose(_run(ir, {x: parts})[y], parts * 3, rtol=1e-6)
    assert result.remap_tensors(graph.args).scale in result.graph.graph
    assert result.stored_buffers == {}


OFFSETS = {"none": (None, 0), "zero": (0, 1), "two": (2, 3), "function": (lambda row: row * 2, 2)}


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_row_of_a_buffer_has_a_column_for_each_step(rng, offset):
    row_offset, expected_row = OFFSETS[offset]
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        x, y = _streams()
        factories, graph = Scaled().create_graph(x.spec)
        (source,), (product,) = graph.graph.inputs[:1], graph.graph.outputs
        handle = RemoteHandle(batch_serial_buffer(product, STEPS, 4), row_offset)
        result = batch_serialise(graph, STEPS, {source: x}, {}, {product: handle}, rows=2)
        result.graph.bind(factories.init()).call(1)
        for step in range(STEPS):
            ops.host_store(y, ops.remote_load(handle.buffer, expected_row * STEPS + step))
    parts = _parts(rng)

    np.testing.assert_allclose(_run(ir, {x: parts})[y], parts * 3, rtol=1e-6)
    assert result.stored_buffers == {product: handle}


def test_layers_pass_their_rows_on(rng):
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        x, y = _streams()
        factories, graph = Scaled().create_graph(x.spec)
        (source,), (product,) = graph.graph.inputs[:1], graph.graph.outputs
        buffer = batch_serial_buffer(product, STEPS)
        first = batch_serialise(graph, STEPS, {source: x}, {}, {product: (buffer, 0)})
        middle = batch_serialise(
            graph, STEPS, {source: (buffer, 0)}, {}, {product: (buffer, 1)}, rows=2
        )
        last = batch_serialise(graph, STEPS, {source: (buffer, 2)}, {product: y}, {})
        variables = factories.init()
        first.graph.bind(variables).call(0)
        for row in range(2):
            middle.graph.bind(variables).call(row)
        last.graph.bind(variables).call(0)
    parts = _parts(rng)

    assert buffer.entries == 3 * STEPS
    np.testing.assert_allclose(_run(ir, {x: parts})[y], parts * 3**4, rtol=1e-6)


def test_each_step_has_another_seed(rng):
    ir = popxl.Ir()

    def noisy(x: popxl.Tensor, seed: popxl.Tensor) -> popxl.Tensor:
        return x + ops.random_uniform(seed, x.shape)

    with ir.main_graph, popxl.in_sequence():
        x, y = _streams()
        seed = popxl.constant(np.array([1, 2], np.uint32))
        graph = GraphWithNamedArgs(ir.create_graph(noisy, x.spec, seed))
        source, seed_input = graph.graph.inputs
        result = batch_serialise(
            graph, STEPS, {source: x}, {graph.graph.outputs[0]: y}, {}, seed_input
        )
        result.graph.call(0, seed)
    noise = _run(ir, {x: np.zeros((STEPS, *SHAPE), np.float32)})[y]

    assert len({part.tobytes() for part in noise}) == STEPS


def test_replicas_hold_parts_of_an_entry(rng):
    ir = popxl.Ir(replication=2)
    both = ir.replica_grouping()
    with ir.main_graph, popxl.in_sequence():
        x, y = _streams()
        factories, graph = Scaled().create_graph(x.spec)
        (source,), (product,) = graph.graph.inputs[:1], graph.graph.outputs
        handle = RemoteHandle(batch_serial_buffer(product, STEPS, 1, both), 0, both)
        variables = factories.init()
        for loads, streams, buffers in (
            ({source: x}, {}, {product: handle}),
            ({source: handle}, {product: y}, {}),
        ):
            result = batch_serialise(graph, STEPS, loads, streams, buffers)
            result.graph.bind(variables).call(0)
    parts = np.repeat(_parts(rng)[:, None], 2, axis=1)

    assert handle.buffer.tensor_shape == (4,)
    np.testing.assert_allclose(_run(ir, {x: parts})[y], parts * 9, rtol=1e-6)


def test_what_cannot_be_is_refused(main_graph):
    _, graph = Scaled().create_graph(popxl.TensorSpec(SHAPE, popxl.float32))
    source = graph.graph.inputs[0]

    with pytest.raises(ValueError, match="io_mode is one of"):
        batch_serialise(graph, STEPS, {}, {}, {}, io_mode="fast")
    with pytest.raises(ValueError, match="at least 1, got 0 and 1"):
        batch_serialise(graph, 0, {}, {}, {})
    with pytest.raises(TypeError, match="expected a RemoteHandle"):
        batch_serialise(graph, STEPS, {source: 3}, {}, {})
