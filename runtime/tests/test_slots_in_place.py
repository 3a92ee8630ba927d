"""Slots of remote buffers that are loaded, worked on and stored, as a KV cache is."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops
from programs import run_program

X = np.array([1, 2, 3, 4], np.float32)


def check(build, *expected, inputs=(X,)):
    for got, want in zip(run_program(build, *inputs), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def buffer_of_x() -> popxl.RemoteBuffer:
    """Slot 0 holds X, in memory of its own."""
    buffer = popxl.remote_buffer((4,), popxl.float32, 2)
    ops.remote_store(buffer, 0, popxl.constant(X))
    return buffer


def test_a_loaded_tensor_is_its_own():
    def build(x):
        buffer = buffer_of_x()
        loaded = ops.remote_load(buffer, 0)
        ops.add_(loaded, 1)
        return loaded, ops.remote_load(buffer, 0)

    check(build, X + 1, X)


def test_a_loaded_tensor_does_not_change_with_its_slot():
    def build(x):
        buffer = buffer_of_x()
        loaded = ops.remote_load(buffer, 0)
        ops.remote_store(buffer, 0, x * 10)
        return loaded, ops.remote_load(buffer, 0)

    check(build, X, 10 * X)


def test_a_slot_worked_on_in_place_is_stored():
    def build(x):
        buffer = buffer_of_x()
        before = ops.remote_load(buffer, 0)
        cache = ops.remote_load(buffer, 0)
        ops.dynamic_update_(cache, popxl.constant([1]), x[:2] * 10, [0], [2], True)
        ops.remote_store(buffer, 0, cache)
        return before, ops.remote_load(buffer, 0)

    check(build, X, [1, 10, 20, 4])


def test_a_slot_worked_on_through_a_view_is_stored():
    def build(x):
        buffer = buffer_of_x()
        cache = ops.remote_load(buffer, 0)
        ops.add_(cache.reshape_((2, 2)), 1)
        ops.remote_store(buffer, 0, cache)
        ops.remote_store(buffer, 1, cache)
        return ops.remote_load(buffer, 0), ops.remote_load(buffer, 1)

    check(build, X + 1, X + 1)


def test_a_view_of_a_loaded_tensor_outlives_its_slot():
    def build(x):
        buffer = buffer_of_x()
        cache = ops.remote_load(buffer, 0)
        view = cache.reshape_((2, 2))
        ops.add_(cache, 1)
        ops.remote_store(buffer, 0, cache)
        ops.remote_store(buffer, 0, x * 0)
        return view, ops.remote_load(buffer, 0)

    check(build, X.reshape(2, 2) + 1, 0 * X)


@pytest.mark.parametrize("view", [False, True])
def test_a_graph_can_return_what_it_stored(view):
    def work(x):
        cache = ops.remote_load(buffers[0], 0)
        result = cache.reshape_((4,)) if view else cache
        ops.add_(cache, x)
        ops.remote_store(buffers[0], 0, cache)
        ops.remote_store(buffers[0], 0, x * 0)
        return result

    def build(x):
        buffers.append(buffer_of_x())
        return (*ops.call(popxl.gir().create_graph(work, x), x), ops.remote_load(buffers[0], 0))

    buffers: list = []
    check(build, 2 * X, 0 * X)
