"""Memory-mapped files: whole or absent, and told apart from others."""

import multiprocessing
import os

import ml_dtypes
import numpy as np
import pytest
from popxl_addons.memory_map import open_or_create


def _fill_with(value):
    def fill(array):
        array[...] = value

    return fill


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, ml_dtypes.bfloat16])
def test_a_file_keeps_values_and_dtype(tmp_path, dtype, rng):
    path = tmp_path / "weights" / "layer.0.weight.npy"
    values = (rng.standard_normal((3, 4)) * 10).astype(dtype)

    made = open_or_create(path, (3, 4), dtype, _fill_with(values))
    opened = open_or_create(path, (3, 4), dtype, _fill_with(0))

    assert made.dtype == opened.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(made, values)
    np.testing.assert_array_equal(opened, values)


def test_numpy_reads_the_file(tmp_path):
    open_or_create(tmp_path / "w.npy", (2, 2), np.float32, _fill_with([[1, 2], [3, 4]]))

    assert np.load(tmp_path / "w.npy").tolist() == [[1, 2], [3, 4]]


def test_what_is_written_to_a_map_is_in_the_file(tmp_path):
    made = open_or_create(tmp_path / "w.npy", (2,), np.float32)
    made[:] = [5, 6]
    made.flush()

    assert np.load(tmp_path / "w.npy").tolist() == [5, 6]


def test_a_file_that_was_there_is_read_only_if_asked(tmp_path):
    path = tmp_path / "w.npy"

    new = open_or_create(path, (2,), np.float32, read_only_if_exists=True)
    old = open_or_create(path, (2,), np.float32, read_only_if_exists=True)

    assert new.flags.writeable
    assert not old.flags.writeable


def test_an_unfilled_file_takes_no_space_on_disk(tmp_path):
    path = tmp_path / "large.npy"

    array = open_or_create(path, (64, 1024, 1024), np.float32)

    assert array.nbytes == 2**28
    assert os.stat(path).st_blocks * 512 < 2**20
    assert not array[-1, -1].any()


def test_an_interrupted_fill_leaves_no_file(tmp_path):
    def fill(array):
        array[0] = 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_or_create(tmp_path / "w.npy", (4,), np.float32, fill)

    assert [p.name for p in tmp_path.iterdir() if p.name != ".lock"] == []
    assert open_or_create(tmp_path / "w.npy", (4,), np.float32, _fill_with(2)).tolist() == [2.0] * 4


@pytest.mark.parametrize(("shape", "dtype"), [((3,), np.float32), ((2,), np.float16)])
def test_another_shape_or_dtype_is_refused(tmp_path, shape, dtype):
    open_or_create(tmp_path / "w.npy", (2,), np.float32)

    with pytest.raises(ValueError, match=r"w\.npy holds float32 \(2,\).*remove the file"):
        open_or_create(tmp_path / "w.npy", shape, dtype)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "w.npy").write_bytes(b"\0" * 64)

    with pytest.raises(ValueError, match=r"w\.npy is not a whole \.npy file"):
        open_or_create(tmp_path / "w.npy", (16,), np.float32)


def test_a_file_that_was_cut_off_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "w.npy"
    open_or_create(path, (1000,), np.float32, _fill_with(1))
    os.truncate(path, 2000)

    with pytest.raises(ValueError, match=r"w\.npy is not a whole \.npy file"):
        open_or_create(path, (1000,), np.float32)
    assert path.stat().st_size == 2000


def _create(path, barrier, results):
    barrier.wait()
    array = open_or_create(path, (100_000,), np.int64, _fill_with(os.getpid()))
    results.put((os.getpid(), sorted(set(array.tolist()))))


def test_processes_that_want_one_file_all_see_the_same_whole_one(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    arguments = (tmp_path / "w.npy", barrier, results)
    processes = [context.Process(target=_create, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    seen = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()

    contents = {tuple(values) for _, values in seen}
    assert len(contents) == 1
    (values,) = contents
    assert len(values) == 1
    assert values[0] in {pid for pid, _ in seen}
