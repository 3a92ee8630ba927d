"""Native kernels and recorded graphs in whole programs, against the ops one by one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable

import numpy as np
import popxl
import pytest
import torch
from popxl import ops
from popxl_torch.replay import recorder, replay
from popxl_torch.replay.scratch import Copies, Scratch
from programs import store

pytestmark = pytest.mark.usefixtures("two_threads")
RUNS = 5
"""Enough for a graph to be run as it is, recorded, and run from the recording."""


def sessions(build: Callable[[], tuple], replicas: int = 1) -> list[tuple]:
    """The program with kernels and without: sessions, and what `build` returned."""
    made = []
    for enabled in (True, False):
        ir = popxl.Ir(replication=replicas)
        with ir.main_graph:
            given = build()
        made.append((popxl.Session(ir, "cpu", composite_kernels=enabled), given))
    return made


def recordings(session: popxl.Session) -> int:
    """How many were made."""
    return session._executor.replays.captures


def run_both(
    build: Callable[[], tuple], given: Iterable[np.ndarray], replicas: int = 1, **near: float
) -> popxl.Session:
    """Run a program of one input and one output as it is and op by op, on each array given.

    Returns:
        The session that has the kernels.
    """
    (fast, (x, y)), (slow, (x_slow, y_slow)) = sessions(build, replicas)
    with fast, slow:
        for one in given:
            expected = slow.run({x_slow: one})[y_slow]
            np.testing.assert_allclose(fast.run({x: one})[y], expected, **near)
    assert recordings(slow) == 0
    return fast


def call(function: Callable, *inputs: popxl.Tensor) -> popxl.Tensor:
    (result,) = ops.call(popxl.gir().create_graph(function, *inputs), *inputs)
    return result


def stored(generator: np.random.Generator, replicas: int, *shape: int) -> np.ndarray:
    """Matrices `(in, out)` whose bytes lie as `(out, in)`."""
    lead = (replicas,) if replicas > 1 else ()
    return generator.standard_normal((*lead, *shape[::-1]), dtype=np.float32).swapaxes(-1, -2)


def layer(replicas: int, grid: tuple[int, int]) -> Callable[[], tuple]:
    """A program of two products over a grid of replicas, as sharded layers have them."""

    def build():
        generator = np.random.default_rng(1)
        ir = popxl.gir()
        over = [
            ir.replica_grouping(stride=grid[1], group_size=grid[0]),
            ir.replica_grouping(stride=1, group_size=grid[1]),
        ]
        own = ir.replica_grouping(group_size=1)
        weights = [
            popxl.variable(stored(generator, replicas, *shape), replica_grouping=own)
            for shape in ((24, 40), (40, 24))
        ]
        bias = popxl.variable(generator.standard_normal(40, dtype=np.float32))
        x = popxl.h2d_stream((3, 24), popxl.float32)

        def inside(x, first, second, bias):
            sums = ops.collectives.replicated_all_reduce
            wide = ops.gelu(sums(x @ first, group=over[1]) + bias)
            return x + sums(wide @ second, group=over[0])

        (y,) = store([call(inside, ops.host_load(x), *weights, bias)])
        return x, y

    return build


@pytest.mark.parametrize("grid", [(1, 1), (2, 1), (2, 3)])
def test_products_are_those_of_the_ops(grid):
    replicas = grid[0] * grid[1]
    given = np.random.default_rng(2).standard_normal((RUNS, replicas, 3, 24), dtype=np.float32)
    given = given if replicas > 1 else given[:, 0]
    assert recordings(run_both(layer(replicas, grid), given, replicas, rtol=1e-4, atol=1e-4)) == 1


def test_a_result_is_not_written_to_by_the_next_run():
    ((session, (x, y)), _) = sessions(layer(1, (1, 1)))
    given = np.random.default_rng(3).standard_normal((RUNS, 3, 24), dtype=np.float32)
    with session:
        results = [session.run({x: one})[y] for one in given]
        copies = [result.copy() for result in results]
        session.run({x: given[0] + 1})
    assert recordings(session) == 1
    for result, copy in zip(results, copies, strict=True):
        np.testing.assert_array_equal(result, copy)


def of_weights() -> tuple[popxl.Variable, popxl.DeviceToHostStream]:
    """A program that sums the columns of its weights, and adds 1."""
    w = popxl.variable(np.full((2, 2), 3, np.float32))
    one = popxl.constant(np.ones((1, 2), np.float32))
    (y,) = store([call(lambda one, w: one @ w + 1, one, w)])
    return w, y


def test_weights_may_be_written_after_a_recording():
    ((session, (w, y)), _) = sessions(of_weights)
    with session:
        for _ in range(RUNS):
            session.run()
        assert recordings(session) == 1
        for number in range(1, RUNS):
            session.write_variable_data(w, np.full((2, 2), number, np.float32))
            np.testing.assert_array_equal(session.run()[y], [[2 * number + 1] * 2])


def test_a_write_in_one_session_leaves_the_recordings_of_another():
    (first, (w, y)), (second, (_, y_second)) = (sessions(of_weights)[0] for _ in range(2))
    with first, second:
        for _ in range(RUNS):
            first.run(), second.run()
        before = second._executor.replays.replays
        first.write_variable_data(w, np.ones((2, 2), np.float32))
        np.testing.assert_array_equal(first.run()[y], [[3] * 2])
        np.testing.assert_array_equal(second.run()[y_second], [[7] * 2])
    assert recordings(first) == 2
    assert recordings(second) == 1
    assert second._executor.replays.replays == before + 1


def test_a_graph_is_recorded_anew_as_often_as_recordings_are_of_use():
    """A variable is written to before every run, then before every twentieth."""

    def build():
        w = popxl.variable(np.zeros(2, np.float32))
        (y,) = store([call(lambda w: w * 2 + 1, w)])
        return w, y

    ((session, (w, y)), _) = sessions(build)
    with session:
        for number in range(12):
            session.write_variable_data(w, np.full(2, number, np.float32))
            np.testing.assert_array_equal(session.run()[y], [2 * number + 1] * 2)
        assert recordings(session) == replay.FIRST_CAPTURES
    ((session, (w, y)), _) = sessions(build)
    with session:
        for number in range(200):
            if number % 20 == 0:
                session.write_variable_data(w, np.full(2, number, np.float32))
            expected = 2 * (number - number % 20) + 1
            np.testing.assert_array_equal(session.run()[y], [expected] * 2)
    assert recordings(session) == 10


def test_variables_are_updated_in_every_run():
    def build():
        total = popxl.variable(np.zeros(3, np.float32))

        def count(total: popxl.TensorByRef) -> popxl.Tensor:
            ops.add_(total, popxl.constant(np.ones(3, np.float32)))
            return total * 2

        (y,) = store([call(count, total)])
        return total, y

    ((session, (total, y)), _) = sessions(build)
    with session:
        for number in range(1, 3 * RUNS):
            np.testing.assert_array_equal(session.run()[y], [2 * number] * 3)
        np.testing.assert_array_equal(session.get_tensor_data(total), [3 * RUNS - 1] * 3)


def test_a_loop_between_streams_is_recorded():
    """Its counter starts with a constant: the layers it picks are the same in every run."""
    layers, size = 3, 24

    def build():
        generator = np.random.default_rng(5)
        buffer = popxl.remote_buffer((size, size), popxl.float32, layers)
        for number in range(layers):
            popxl.remote_variable(stored(generator, 1, size, size), buffer, number)
        x = popxl.h2d_stream((4, size), popxl.float32)

        def layer(x, number):
            return [ops.gelu(x @ ops.remote_load(buffer, number)) + x, number + 1]

        first = ops.host_load(x)
        body = popxl.gir().create_graph(layer, first, popxl.TensorSpec((), popxl.int32))
        (y,) = store(ops.repeat(body, layers, first, 0)[:1])
        return x, y

    given = np.random.default_rng(6).standard_normal((RUNS, 4, size), dtype=np.float32)
    assert recordings(run_both(build, given, rtol=1e-4, atol=1e-4)) == 1


RECORDS = """
import sys
import numpy as np, popxl
from popxl import ops
ir = popxl.Ir()
with ir.main_graph:
    x, y = popxl.h2d_stream((2, 3), popxl.float32), popxl.d2h_stream((2, 3), popxl.float32)
    given = ops.host_load(x)
    graph = ir.create_graph(lambda t: ops.gelu(t) + t, given)
    ops.host_store(y, ops.call(graph, given)[0])
with popxl.Session(ir, "cpu") as session:
    for _ in range(3):
        session.run({x: np.ones((2, 3), np.float32)})
print(session._executor.replays.captures)
print(sorted(name for name in ("torch._dynamo", "sympy") if name in sys.modules))
"""


def test_recording_does_not_wait_for_torchs_compiler():
    """Its import takes longer than all tokens of a small model."""
    done = subprocess.run(
        [sys.executable, "-c", RECORDS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["1", "[]"]


def test_scratch_memory_is_used_again_when_nothing_lies_in_it():
    scratch = Scratch()
    first = scratch.empty((10, 10), torch.float32)
    view, place = first[2:], first.data_ptr()
    del first
    assert scratch.empty((100,), torch.float32).data_ptr() != place
    assert scratch.holds(view)
    assert not scratch.holds(torch.empty(3))
    del view
    again = scratch.empty((3, 7), torch.float16)
    assert again.shape == (3, 7)
    assert again.is_contiguous()
    assert scratch.bytes() == 2 * 400


def test_a_graph_too_large_to_record_leaves_room_for_the_others(monkeypatch):
    monkeypatch.setattr(recorder, "MOST_BYTES", 1 << 14)
    rows = 4, 400, 8

    def build():
        given = popxl.h2d_stream((max(rows), 24), popxl.float32)
        loaded = ops.host_load(given)
        made = [call(lambda t: ops.gelu(t + 1) * 2, loaded[:count]) for count in rows]
        (y,) = store([ops.sum(t) for t in made])[-1:]
        return given, y

    given = np.random.default_rng(7).standard_normal((RUNS, max(rows), 24), dtype=np.float32)
    session = run_both(build, given, rtol=1e-4, atol=1e-4)
    assert recordings(session) == 2


def test_copies_use_memory_again_that_nobody_has():
    result = torch.zeros(3)
    copies = Copies(result)
    taken = []
    for number in range(4):
        result.fill_(number)
        taken.append(copies.copy().numpy())  # an array holds its memory too
    assert [array.tolist() for array in taken] == [[number] * 3 for number in range(4)]
    place = taken[-1].ctypes.data
    del taken[-1]
    result.fill_(9)
    again = copies.copy()
    assert again.data_ptr() == place
    assert [array.tolist() for array in taken] == [[number] * 3 for number in range(3)]


def test_what_python_decides_by_is_decided_anew():
    """Positions of a dynamic slice, and indices that must be inside their axis."""

    def build():
        at = popxl.h2d_stream((1,), popxl.int32)
        table = popxl.variable(np.arange(10, dtype=np.float32))

        def pick(table, at):
            part = ops.dynamic_slice(table, at, [0], [2], True)
            return part + ops.gather(table, at)

        (y,) = store([call(pick, table, ops.host_load(at))])
        return at, y

    ((session, (at, y)), _) = sessions(build)
    with session:
        for start in (0, 0, 0, 0, 3, 3, 1, 1, 1, 8, 2, 2, 2, 2):
            result = session.run({at: np.array([start], np.int32)})[y]
            np.testing.assert_array_equal(result, [2 * start, 2 * start + 1])
        with pytest.raises(IndexError, match="10"):
            session.run({at: np.array([10], np.int32)})


@pytest.mark.parametrize("rows", [1, 16, 40])
@pytest.mark.parametrize("dtype", [popxl.float32, popxl.float16])
def test_quantised_products_are_those_of_their_graphs(rows, dtype):
    generator = np.random.default_rng(4)
    kind = dtype.as_numpy()

    def channel_quantized_matmul(x, weight, scale):
        return ops.cast(ops.cast(x @ ops.cast(weight, x.dtype), popxl.float32) * scale, x.dtype)

    def build():
        source = np.random.default_rng(5)
        weight = source.integers(-127, 128, (20, 64), dtype=np.int8).T
        scale = source.random(20, dtype=np.float32) / 127
        x = popxl.h2d_stream((rows, 64), dtype)
        given = [ops.host_load(x), popxl.variable(weight), popxl.variable(scale)]
        bias = popxl.variable(np.ones(20, kind))
        (y,) = store([call(channel_quantized_matmul, *given) + bias])
        return x, y

    given = generator.standard_normal((rows, 64), dtype=np.float32).astype(kind)
    run_both(build, [given], rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("rows", [1, 40])
def test_products_with_grouped_weights_are_those_of_their_graph(rows):
    from popxl_addons.ops.group_quantize_decompress import (
        group_quantize_compress_numpy,
        group_quantize_decompress,
    )

    generator = np.random.default_rng(6)
    full = generator.standard_normal((20, 64), dtype=np.float32)
    compressed = group_quantize_compress_numpy(full, 16, 1)

    def group_quantized_matmul(x, words, scale, bias):
        return x @ group_quantize_decompress(words, scale, bias, 0)

    def build():
        x = popxl.h2d_stream((rows, 64), popxl.float16)
        given = [ops.host_load(x), *(popxl.variable(part) for part in compressed)]
        (y,) = store([call(group_quantized_matmul, *given)])
        return x, y

    given = generator.standard_normal((rows, 64), dtype=np.float32).astype(np.float16)
    run_both(build, [given], rtol=1e-2, atol=3e-2)


def _slot_program(build: Callable[[popxl.RemoteBuffer, popxl.Tensor], popxl.Tensor]) -> list:
    """What 6 runs of a program on a buffer of two slots give, with kernels and without."""

    def made():
        buffer = popxl.remote_buffer((4,), popxl.float32, 2)
        given = popxl.h2d_stream((4,), popxl.float32), popxl.h2d_stream((), popxl.int32)
        (out,) = store([build(buffer, *map(ops.host_load, given))])
        return *given, out

    found = []
    for session, (x, at, out) in sessions(made):
        with session:
            runs = [
                session.run({x: np.full(4, 1 + i, np.float32), at: np.array(i % 2, np.int32)})
                for i in range(6)
            ]
        found.append(np.stack([run[out] for run in runs]))
    return found


def test_what_a_slot_holds_is_no_constant_of_a_recording():
    def change(buffer):
        def graph(x):
            old = ops.remote_load(buffer, 0)
            ops.remote_store(buffer, 0, old + x)
            return x - old

        return graph

    found = _slot_program(lambda buffer, x, at: call(change(buffer), x))
    np.testing.assert_array_equal(*found)


def test_a_slot_that_is_stored_outside_of_a_recording_is_no_constant_of_it():
    def build(buffer, x, at):
        doubled = call(lambda x: ops.remote_load(buffer, 0) * 2.0 + x, x)
        ops.remote_store(buffer, 0, doubled)
        return doubled

    np.testing.assert_array_equal(*_slot_program(build))


def test_a_slot_that_comes_to_be_while_a_graph_is_recorded_keeps_what_is_stored():
    def build(buffer, x, at):
        def graph(x, at):
            old = ops.remote_load(buffer, at)
            ops.remote_store(buffer, at, old + x)
            return old

        return call(graph, x, at)

    np.testing.assert_array_equal(*_slot_program(build))
