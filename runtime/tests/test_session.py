"""Sessions: what goes in and comes out, and what they refuse."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
import torch
from popxl import ops
from popxl_torch import host_streams, variables
from programs import run_program, store

X = np.array([1, 2, 3], np.float32)


class Program:
    """Doubles stream `x` and adds the variable `v`."""

    def __init__(self, replicas: int = 1, dtype: popxl.dtype = popxl.float32, transfers: int = 1):
        self.ir = popxl.Ir(replication=replicas)
        self.ir.num_host_transfers = transfers
        with self.ir.main_graph:
            self.x = popxl.h2d_stream((3,), dtype, "x")
            data = X.astype(dtype.as_numpy()) * 10
            self.v = popxl.variable(data, name="v")
            self.y = popxl.d2h_stream((3,), dtype, "y")
            for _ in range(transfers):
                ops.host_store(self.y, ops.host_load(self.x) * 2 + self.v)
        self.session = popxl.Session(self.ir)

    def run(self, x, **options):
        with self.session:
            return self.session.run({self.x: x}, **options)[self.y]


# --- inputs and outputs ---


def test_the_streams_of_a_program():
    program = Program()
    assert program.session.expected_inputs() == [program.x]
    assert program.ir.get_all_h2d_streams() == {program.x}
    assert program.ir.get_all_d2h_streams() == {program.y}
    assert program.session.ir is program.ir
    assert (program.x.tensor_id, program.x.shape, program.x.dtype) == ("x", (3,), popxl.float32)
    assert program.x.spec == popxl.TensorSpec((3,), popxl.float32)
    (made,) = program.session.create_host_outputs().values()
    assert (made.shape, made.dtype) == ((3,), np.float32)


def test_streams_that_no_op_uses_are_no_inputs():
    ir = popxl.Ir()
    with ir.main_graph:
        popxl.h2d_stream((3,), popxl.float32)
        ir.create_graph(lambda: ops.host_load(popxl.h2d_stream((), popxl.int32, "uncalled")))
    with popxl.Session(ir) as session:
        assert session.expected_inputs() == []
        assert session.run() == {}


def test_streams_of_one_name_have_ids_of_their_own():
    with popxl.Ir().main_graph:
        made = [popxl.h2d_stream((), popxl.int32, name) for name in ("x", "x_1", "x", "x", "x_1")]
    assert len({stream.tensor_id for stream in made}) == 5
    assert made[0].tensor_id == "x"


@pytest.mark.parametrize("given", [X, X.tolist(), torch.from_numpy(X), X.astype(np.float64)])
def test_inputs_may_be_anything_that_is_an_array(given):
    np.testing.assert_array_equal(Program().run(given), 12 * X)


def test_64_bit_inputs_are_narrowed_unless_told_otherwise():
    program = Program(dtype=popxl.int32)
    wide = X.astype(np.int64)
    np.testing.assert_array_equal(program.run(wide), 12 * X)
    with pytest.raises(TypeError, match="stream x: expected int32, got int64"):
        program.run(wide, downcast_inputs=False)
    np.testing.assert_array_equal(program.run(wide.astype(np.int32), downcast_inputs=False), 12 * X)


def test_streams_of_64_bits_take_what_they_are():
    ir = popxl.Ir()
    with ir.main_graph:
        x = popxl.h2d_stream((), popxl.int64)
        (y,) = store([ops.host_load(x) + 1])
    with popxl.Session(ir) as session:
        assert session.run({x: np.array(2**40)})[y] == 2**40 + 1


def test_inputs_that_do_not_fit_are_refused():
    program = Program(replicas=2)
    x = np.stack([X, X])
    with popxl.Ir().main_graph:
        stranger = popxl.h2d_stream((3,), popxl.float32, "stranger")
    with program.session as session:
        with pytest.raises(ValueError, match="inputs: nothing was given for stream x"):
            session.run({})
        with pytest.raises(ValueError, match="the program has no stream stranger; it has: x"):
            session.run({program.x: x, stranger: x})
        with pytest.raises(ValueError, match="no stream 'x'"):
            session.run({"x": x})
        with pytest.raises(ValueError, match=r"stream x: .*\(2, 3\).*got \(3,\)"):
            session.run({program.x: X})
        with pytest.raises(TypeError, match="stream x: expected float32, got float16"):
            session.run({program.x: x.astype(np.float16)})
        with pytest.raises(TypeError, match="stream x: expected float32, got int32"):
            session.run({program.x: x.astype(int)})


def test_a_session_runs_when_it_is_attached():
    session = Program().session
    for call in (session.run, session.weights_to_host, session.weights_from_host):
        with pytest.raises(ValueError, match="attached device: call it inside `with session"):
            call()
    with pytest.raises(ValueError, match="run_with_outputs needs an attached device"):
        session.run_with_outputs()
    with session:
        with session:
            assert session.is_attached
        assert session.is_attached
        session.weights_to_host()
        session.weights_from_host()
    assert not session.is_attached


def test_devices():
    ir = Program().ir
    for device in ("auto", "cpu", "ipu_model", "ipu_hw"):
        with popxl.Session(ir, device):
            pass
    with pytest.raises(
        ValueError, match="device 'tpu': allowed are auto, cpu, cuda, ipu_model, ipu_hw"
    ):
        popxl.Session(ir, "tpu")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="PyTorch sees no CUDA device"):
            popxl.Session(ir, "cuda")


@pytest.mark.parametrize("what", ["run", "write"])
def test_too_little_memory_of_a_device_is_one_line(monkeypatch, what):
    ir = popxl.Ir()
    with ir.main_graph:
        stream = popxl.h2d_stream((), popxl.float32)
        variable = popxl.variable(1.0)
        ops.host_load(stream)

    def fail(array):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 7.20 GiB. GPU 0 has a total capacity of 79.15 "
            "GiB of which 1.50 GiB is free. Including other memory, more is in use.\nTrace"
        )

    with popxl.Session(ir) as session:
        monkeypatch.setattr(host_streams if what == "run" else variables, "to_torch", fail)
        with pytest.raises(MemoryError) as raised:
            if what == "run":
                session.run({stream: np.float32(1)})
            session.write_variable_data(variable, 2.0)
    assert str(raised.value).startswith(
        "the device is out of memory: Tried to allocate 7.20 GiB; GPU 0 has a total capacity of "
        "79.15 GiB of which 1.50 GiB is free. "
    )
    assert "\n" not in str(raised.value)
    assert "POPXL_DEVICE_MEMORY" in str(raised.value)


def test_outputs_can_be_given():
    program = Program(replicas=2)
    x, out = np.stack([X, -X]), np.full((2, 3), np.nan, np.float32)
    with program.session as session:
        assert session.run_with_outputs({program.x: x}, {program.y: out}) is None
        np.testing.assert_array_equal(out, 2 * x + 10 * X)
        with pytest.raises(ValueError, match="outputs: nothing was given for stream y"):
            session.run_with_outputs({program.x: x}, {})
        with pytest.raises(ValueError, match=r"stream y: .*\(2, 3\).*got \(3,\)"):
            session.run_with_outputs({program.x: x}, {program.y: out[0]})
        with pytest.raises(TypeError, match="stream y: expected float32, got float64"):
            session.run_with_outputs({program.x: x}, {program.y: out.astype(float)})
        with pytest.raises(TypeError, match="stream y: expected a numpy array, got list"):
            session.run_with_outputs({program.x: x}, {program.y: out.tolist()})


@pytest.mark.parametrize("replicas", [1, 2])
def test_several_transfers_in_a_run(replicas):
    program = Program(replicas, transfers=3)
    x = np.arange(9 * replicas, dtype=np.float32).reshape(3, replicas, 3)
    x = x if replicas > 1 else x[:, 0]
    np.testing.assert_array_equal(program.run(x), 2 * x + 10 * X)


def test_a_loop_takes_a_transfer_a_round():
    def body(total):
        return total + ops.host_load(streams[0])

    ir = popxl.Ir()
    ir.num_host_transfers = 4
    with ir.main_graph:
        streams = [popxl.h2d_stream((), popxl.int32)]
        zero = popxl.constant(0)
        (total,) = ops.repeat(ir.create_graph(body, zero), 4, zero)
        (y,) = store([total])
    with popxl.Session(ir) as session:
        results = session.run({streams[0]: np.arange(4, dtype=np.int32)})
    assert results[y].tolist() == [6, 0, 0, 0]


@pytest.mark.parametrize("transfers", [1, 2])
def test_a_stream_used_too_often_is_an_error_that_names_it(transfers):
    ir = popxl.Ir()
    ir.num_host_transfers = transfers
    with ir.main_graph:
        x, y = popxl.h2d_stream((), popxl.int32, "x"), popxl.d2h_stream((), popxl.int32, "y")
        loads = [ops.host_load(x) for _ in range(transfers)]
        for _ in range(transfers + 1):
            ops.host_store(y, loads[0])
    data = np.zeros(transfers, np.int32) if transfers > 1 else np.array(0, np.int32)
    stored = pytest.raises(RuntimeError, match=f"y is stored to more than {transfers} times in")
    with popxl.Session(ir) as session, stored:
        session.run({x: data})


def test_a_stream_loaded_too_often_is_an_error_that_names_it():
    ir = popxl.Ir()
    with ir.main_graph:
        x = popxl.h2d_stream((), popxl.int32, "x")
        store([ops.host_load(x), ops.host_load(x)])
    loaded = pytest.raises(RuntimeError, match="stream x is loaded from more than 1 times")
    with popxl.Session(ir) as session, loaded:
        session.run({x: 0})


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_stream_that_is_not_reached_gives_zeros(replicas):
    def work(stream):
        ops.host_store(stream, popxl.constant(X))

    ir = popxl.Ir(replication=replicas)
    with ir.main_graph:
        streams = [popxl.d2h_stream((3,), popxl.float32) for _ in range(2)]
        graphs = [ir.create_graph(work, stream) for stream in streams]
        ops.conditional(popxl.constant(True), *graphs)
    with popxl.Session(ir) as session:
        results = session.run()
    expected = np.broadcast_to(X, (replicas, 3)) if replicas > 1 else X
    np.testing.assert_array_equal(results[streams[0]], expected)
    np.testing.assert_array_equal(results[streams[1]], 0 * expected)


def test_inputs_with_signed_zeros_are_told_apart():
    """Replicas that are equal are held once; 0.0 and -0.0 are equal and not the same."""
    x = np.array([0.0, -0.0], np.float32)
    np.testing.assert_array_equal(run_program(lambda x: 1 / x, x, replicas=2)[0], [np.inf, -np.inf])


# --- print_tensor ---


def test_print_tensor_goes_to_standard_error(capfd):
    (got,) = run_program(lambda x: ops.print_tensor(x, title="here"), X)
    np.testing.assert_array_equal(got, X)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == "here [1. 2. 3.]\n"


@pytest.mark.parametrize(
    "style, text",
    [
        ({"separator": ", ", "open_bracket": "(", "close_bracket": ")"}, "(1., 2., 3.)"),
        ({"float_format": "scientific", "digits": 2}, "[1.00e+00 2.00e+00 3.00e+00]"),
        ({"summarise_threshold": 2, "edge_items": 1}, "[1. ... 3.]"),
    ],
)
def test_print_tensor_has_style(style, text, capfd):
    run_program(lambda x: ops.print_tensor(x, title="x", **style), X)
    assert capfd.readouterr().err == f"x {text}\n"


@pytest.mark.parametrize("dtype", [popxl.bfloat16, popxl.float16, popxl.uint32], ids=str)
def test_print_tensor_of_other_types(dtype, capfd):
    run_program(lambda x: ops.print_tensor(x, title="x"), np.array(3).astype(dtype.as_numpy()))
    assert capfd.readouterr().err.startswith("x 3")


def test_print_tensor_can_be_silent(capfd):
    run_program(lambda x: ops.print_tensor(x, print_self=False), X)
    assert capfd.readouterr().err == ""
