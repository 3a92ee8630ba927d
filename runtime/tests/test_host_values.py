"""What the host holds of variables: after runs, between sessions, in memory-mapped files."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops
from programs import store

START = np.arange(6, dtype=np.float32).reshape(2, 3)


class Counter:
    """Adds 1 to `v` (remote, where `remote`) and 0 to `fixed` in every run; `y` is `v` before.

    Args:
        data: what `v` is made from.
        options: of the session.
    """

    def __init__(self, data=START, replicas=1, remote=False, fixed=START, **options):
        self.ir = popxl.Ir(replication=replicas)
        with self.ir.main_graph:
            self.fixed = popxl.variable(fixed, name="fixed")
            if remote:
                buffer = popxl.remote_buffer(data.shape, popxl.float32)
                self.v = popxl.remote_variable(data, buffer, 0, name="v")
                held = ops.remote_load(buffer, 0)
                (self.y,) = store([held])
                ops.remote_store(buffer, 0, held + 1)
            else:
                self.v = popxl.variable(data, name="v")
                (self.y,) = store([self.v + self.fixed * 0])
                ops.add_(self.v, 1)
        self.session = popxl.Session(self.ir, **options)

    def added(self):
        """How much more than START `v` is, as the session says."""
        return int((self.session.get_tensor_data(self.v) - START).flat[0])

    def run(self):
        """How much more than START `v` was before this run."""
        return int((self.session.run()[self.y].reshape(-1, *START.shape)[-1] - START).flat[0])


KINDS = {
    "one replica": {},
    "four replicas": {"replicas": 4},
    "remote": {"remote": True},
    "remote, two replicas": {"remote": True, "replicas": 2},
}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_variables_come_to_the_host_when_the_session_ends(kind):
    counter = Counter(**KINDS[kind])
    with counter.session:
        assert [counter.run(), counter.run()] == [0, 1]
    assert counter.added() == 2
    with counter.session:
        assert counter.run() == 2
    assert START.flat[0] == 0


@kinds
def test_without_weights_to_host_on_exit_the_host_keeps_its_values(kind):
    counter = Counter(weights_to_host_on_exit=False, **KINDS[kind])
    assert counter.added() == 0
    for _ in range(2):
        with counter.session:
            assert [counter.run() for _ in range(4)] == [0, 1, 2, 3]
        assert counter.added() == 0


@kinds
def test_asking_for_a_value_brings_it_to_the_host(kind):
    counter = Counter(weights_to_host_on_exit=False, **KINDS[kind])
    with counter.session:
        counter.run()
        assert counter.added() == 1
        counter.run()
    assert counter.added() == 1
    with counter.session:
        assert counter.run() == 1


@kinds
def test_weights_to_host_and_from_host(kind):
    counter = Counter(weights_to_host_on_exit=False, **KINDS[kind])
    with counter.session:
        counter.run()
        counter.session.weights_to_host()
        assert [counter.run(), counter.run()] == [1, 2]
        counter.session.weights_from_host()
        assert [counter.run(), counter.run()] == [1, 2]
    assert counter.added() == 1


@kinds
@pytest.mark.parametrize("keeps", [False, True])
def test_what_is_written_is_written_to_host_and_device(kind, keeps):
    counter = Counter(weights_to_host_on_exit=not keeps, **KINDS[kind])
    counter.session.write_variable_data(counter.v, START + 10)
    assert counter.added() == 10
    with counter.session:
        assert counter.run() == 10
        counter.session.write_variable_data(counter.v, START + 20)
        assert counter.run() == 20
    assert counter.added() == (20 if keeps else 21)
    counter.session.write_variable_data(counter.v, START + 30)
    with counter.session:
        assert counter.run() == 30


def test_an_error_inside_the_session_leaves_the_device_as_it_is():
    counter = Counter()
    with pytest.raises(KeyError), counter.session:
        counter.run()
        raise KeyError
    assert counter.added() == 1


def test_sessions_nest():
    counter = Counter(weights_to_host_on_exit=False)
    with counter.session:
        with counter.session:
            counter.run()
        assert counter.session.is_attached
        assert counter.run() == 1
    assert counter.added() == 0


def test_variables_that_replicas_differ_in_are_not_written():
    ir = popxl.Ir(replication=2)
    with ir.main_graph:
        v = popxl.variable(START, retrieval_mode="all_replicas")
    with popxl.Session(ir) as session, pytest.raises(NotImplementedError, match="all replicas"):
        session.write_variable_data(v, START)


# --- memory maps ---


@pytest.fixture
def path(tmp_path):
    made = np.memmap(tmp_path / "v.bin", np.float32, "w+", shape=START.shape)
    made[...] = START
    made.flush()
    return tmp_path / "v.bin"


def mapped(path, mode="r+", shape=START.shape, dtype=np.float32, **rest):
    return np.memmap(path, dtype, mode, shape=shape, **rest)


def on_disk(path):
    return np.fromfile(path, np.float32).reshape(START.shape)


@kinds
def test_a_writable_map_is_written_back_when_the_session_ends(path, kind):
    data = mapped(path)
    counter = Counter(data, **KINDS[kind])
    with counter.session:
        counter.run()
        np.testing.assert_array_equal(on_disk(path), START)
    np.testing.assert_array_equal(on_disk(path), START + 1)
    assert counter.session.get_tensor_data(counter.v) is data
    with counter.session:
        assert counter.run() == 1
        counter.session.weights_to_host()
        np.testing.assert_array_equal(on_disk(path), START + 2)
        counter.run()
        assert counter.session.get_tensor_data(counter.v) is data
        np.testing.assert_array_equal(on_disk(path), START + 3)


def test_a_map_is_not_written_back_unasked(path):
    counter = Counter(mapped(path), weights_to_host_on_exit=False)
    with counter.session:
        counter.run()
    np.testing.assert_array_equal(on_disk(path), START)
    with pytest.raises(KeyError), Counter(mapped(path)).session as session:
        session.run()
        raise KeyError
    np.testing.assert_array_equal(on_disk(path), START)


def test_only_maps_that_the_program_writes_to_are_written(path):
    other = mapped(path, "r+")
    counter = Counter(fixed=other)
    with counter.session:
        counter.run()
        other[...] = START + 5  # by someone else, while the program runs
    np.testing.assert_array_equal(on_disk(path), START + 5)


@kinds
def test_what_the_user_writes_to_a_variable_goes_to_its_map(path, kind):
    counter = Counter(mapped(path), **KINDS[kind])
    counter.session.write_variable_data(counter.v, START + 7)
    np.testing.assert_array_equal(on_disk(path), START + 7)
    with counter.session:
        assert counter.run() == 7


@kinds
def test_a_read_only_map_is_never_written_to(path, kind):
    counter = Counter(mapped(path, "r"), **KINDS[kind])
    with counter.session:
        assert [counter.run(), counter.run()] == [0, 1]
        assert counter.added() == 2
        with pytest.raises(RuntimeError, match="variable v was made from a memory map that is"):
            counter.session.weights_to_host()
    assert counter.added() == 0
    counter.session.write_variable_data(counter.v, START + 3)
    with counter.session:
        assert counter.run() == 3
    np.testing.assert_array_equal(on_disk(path), START)


def test_what_is_written_from_a_map_does_not_change_it(path):
    counter = Counter()
    counter.session.write_variable_data(counter.v, mapped(path, "r+"))
    with counter.session:
        counter.run()
    np.testing.assert_array_equal(on_disk(path), START)


@pytest.mark.parametrize("data", ["copy on write", "plain view"])
def test_other_views_of_a_file_are_ordinary_arrays(path, data):
    array = mapped(path, "c") if data == "copy on write" else np.asarray(mapped(path, "r"))
    counter = Counter(array)
    with counter.session:
        counter.run()
        counter.session.weights_to_host()
    assert counter.added() == 1
    np.testing.assert_array_equal(on_disk(path), START)


REFUSED = {
    "another dtype": ({}, {"dtype": popxl.float16}, "is float32, it would be float16"),
    "64 bits": ({"dtype": np.float64, "shape": (3,)}, {}, "is float64, it would be float32"),
    "Fortran order": ({"order": "F"}, {}, "must be C-ordered and aligned"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_writable_maps_that_a_variable_cannot_use_as_they_are(path, main_graph, case):
    of_map, of_variable, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"variable v: its memory map {message}"):
        popxl.variable(mapped(path, **of_map), name="v", **of_variable)


def test_maps_of_irregular_groups_are_copied(path):
    ir = popxl.Ir(replication=8)
    grouping = ir.replica_grouping_from_assignments([0, 0, 1, 1, 0, 0, 1, 1])
    with ir.main_graph:
        with pytest.warns(UserWarning, match="copied and not written back"):
            v = popxl.variable(mapped(path), name="v", replica_grouping=grouping)
        ops.add_(v, 1)
    with popxl.Session(ir) as session:
        session.run()
        np.testing.assert_array_equal(session.get_tensor_data(v), START + 1)
    np.testing.assert_array_equal(on_disk(path), START)
