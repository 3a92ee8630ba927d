"""Sessions that know their program by name."""

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_addons import InputStreams, NamedTensors, OutputStreams, TaskSession
from popxl_addons.layers import Linear


@pytest.fixture
def session():
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        inputs = InputStreams(x=((2, 3), popxl.float32))
        outputs = OutputStreams(y=((2, 4), popxl.float32))
        x = ops.host_load(inputs.x)
        factories, graph = Linear(4).create_graph(x)
        variables = factories.init("linear")
        (y,) = graph.bind(variables).call(x)
        ops.host_store(outputs.y, y)
    state = NamedTensors(linear=variables)
    return TaskSession(inputs, outputs, state, ir=ir, device_desc="cpu")


def test_a_program_runs_with_the_values_written_by_name(session, rng):
    x, weight = (rng.standard_normal(s).astype(np.float32) for s in ((2, 3), (3, 4)))
    bias = np.arange(4, dtype=np.float32)
    session.write_variables_data(
        {session.state.linear.weight: weight, session.state.linear.bias: bias}
    )

    with session:
        y = session.run({session.inputs.x: x})[session.outputs.y]

    np.testing.assert_allclose(y, x @ weight + bias, rtol=1e-5)
    assert session.session_state["steps"] == 1


def test_values_are_read_back_by_name(session):
    bias = np.arange(4, dtype=np.float32)
    session.write_variables_data({session.state.linear.bias: bias})

    data = session.get_named_tensors_data()

    assert data.keys_flat() == ["linear.bias", "linear.weight"]
    np.testing.assert_array_equal(data.linear.bias, bias)
    assert data.linear.weight.shape == (3, 4)


def test_plain_streams_are_named_by_their_ids(session):
    ir = session.ir
    again = TaskSession(
        list(session.inputs), list(session.outputs), session.state, 1, ir, device_desc="cpu"
    )

    assert list(again.inputs) == list(session.inputs)
    assert again.outputs["y"] is session.outputs.y
