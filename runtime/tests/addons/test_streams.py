"""Collections of streams."""

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_addons import InputStreams, OutputStreams, host_load, host_store


@pytest.fixture
def inputs(main_graph):
    return InputStreams(tokens=((4,), popxl.int32), scale=((), popxl.float32))


def test_streams_are_made_by_name_shape_and_dtype(inputs):
    assert isinstance(inputs.tokens, popxl.HostToDeviceStream)
    assert (inputs.tokens.shape, inputs.tokens.dtype) == ((4,), popxl.int32)
    assert inputs.scale.tensor_id == "scale"
    assert isinstance(OutputStreams(y=((2,), popxl.float16)).y, popxl.DeviceToHostStream)


def test_streams_are_found_by_attribute_name_and_position(inputs):
    tokens, scale = inputs

    assert tokens is inputs.tokens is inputs["tokens"] is inputs[0]
    assert scale is inputs[-1]
    assert inputs[0:2] == [tokens, scale]
    assert list(inputs.keys()) == ["tokens", "scale"]
    assert dict(inputs.items()) == {"tokens": tokens, "scale": scale}
    assert "tokens" in inputs
    assert len(inputs) == 2


def test_an_unknown_stream_is_an_error_that_lists_the_known(inputs):
    with pytest.raises(AttributeError, match="'positions'; there are: tokens, scale"):
        inputs.positions  # noqa: B018
    with pytest.raises(KeyError, match="'positions'; there are: tokens, scale"):
        inputs["positions"]


def test_existing_streams_are_named_by_their_ids(main_graph):
    stream = popxl.h2d_stream((2,), popxl.float32, "x")

    assert InputStreams.from_streams([stream])[stream.tensor_id] is stream


def test_host_load_and_host_store_make_their_streams():
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        array, x_stream, x = host_load(np.arange(3.0), popxl.float16, "x")
        y_stream = host_store(ops.add(x, x))

    assert array.dtype == np.float16
    assert x_stream.tensor_id == "x_stream"
    with popxl.Session(ir, "cpu") as session:
        assert session.run({x_stream: array})[y_stream].tolist() == [0, 2, 4]
