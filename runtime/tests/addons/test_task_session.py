"""Sessions that know their program by name."""

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_addons import InputStreams, NamedTensors, OutputStreams, TaskSession
from popxl_addons.layers import Linear


def make_session(dtype=popxl.float32, **where):
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        inputs = InputStreams(x=((2, 3), dtype))
        outputs = OutputStreams(y=((2, 4), dtype))
        x = ops.host_load(inputs.x)
        factories, graph = Linear(4).create_graph(x)
        variables = factories.init("linear", **where)
        (y,) = graph.bind(variables).call(x)
        ops.host_store(outputs.y, y)
    state = NamedTensors(linear=variables)
    return TaskSession(inputs, outputs, state, ir=ir, device_desc="cpu")


@pytest.fixture
def session():
    return make_session()


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


def _write(session, rng):
    dtype = session.state.linear.weight.dtype.as_numpy()
    values = {
        session.state.linear.weight: rng.standard_normal((3, 4)).astype(dtype),
        session.state.linear.bias: np.arange(4).astype(dtype),
    }
    session.write_variables_data(values)
    return session.get_named_tensors_data().map(np.array).to_dict()


def _assert_holds(session, values):
    held = session.get_named_tensors_data().to_dict()
    assert held.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(held[name], value)


@pytest.mark.parametrize("dtype", [popxl.float32, popxl.float16, popxl.bfloat16])
@pytest.mark.parametrize("mapped", [False, True])
def test_another_session_takes_the_values_of_a_checkpoint(tmp_path, rng, dtype, mapped):
    where = {"memmap_dir": str(tmp_path / "maps")} if mapped else {}
    first = make_session(dtype, **where)
    values = _write(first, rng)
    first.add_session_state_info({"learned": "much"})
    first.save_checkpoint(str(tmp_path / "kept"))

    second = make_session(dtype)
    second.load_checkpoint(str(tmp_path / "kept"), report_missing="error")

    _assert_holds(second, values)
    assert second.session_state == {"steps": 0, "learned": "much"}


def test_names_that_a_checkpoint_lacks_are_told(tmp_path, session, rng, caplog):
    values = _write(session, rng)
    session.save_checkpoint(str(tmp_path))
    (tmp_path / "model" / "linear.bias.npz").rename(tmp_path / "model" / "linear.shift.npz")
    (tmp_path / "session_info.json").unlink()
    other = make_session()

    with pytest.raises(ValueError, match=r"not in the program: linear\.shift; .*: linear\.bias"):
        other.load_checkpoint(str(tmp_path), report_missing="error")
    other.load_checkpoint(str(tmp_path))

    assert "linear.bias" in caplog.text
    np.testing.assert_array_equal(
        other.get_tensor_data(other.state.linear.weight), values["linear.weight"]
    )
    assert other.session_state == {"steps": 0}
    with pytest.raises(ValueError, match="report_missing is one of"):
        other.load_checkpoint(str(tmp_path), report_missing="all")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        other.load_checkpoint(str(tmp_path / "nowhere"))


def test_the_oldest_checkpoint_goes(tmp_path, session):
    for name in ("first", "second"):
        session.save_checkpoint(str(tmp_path / name))

    assert [folder.name for folder in tmp_path.iterdir()] == ["second"]


def test_values_pass_from_session_to_session(session, rng):
    values = _write(session, rng)
    other = make_session()
    other.load_from_session(session, report_missing="error")

    _assert_holds(other, values)


def test_a_variable_knows_its_memory_map(tmp_path):
    held = make_session(memmap_dir=str(tmp_path)).state.linear.weight._memmap_arr

    assert isinstance(held, np.memmap)
    assert make_session().state.linear.weight._memmap_arr is None
