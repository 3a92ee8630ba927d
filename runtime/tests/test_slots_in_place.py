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


# --- slots that a call is given by value ---


def add_to(t, x):
    """A graph that writes to its input and returns it, and what it was before."""
    before = t * 1
    return ops.add_(t, x), before


def test_a_slot_given_to_a_call_and_stored_is_what_the_call_returned():
    def build(x):
        buffer = buffer_of_x()
        graph = popxl.gir().create_graph(add_to, x, x)
        for _ in range(2):
            new, before = ops.call(graph, ops.remote_load(buffer, 0), x)
            ops.remote_store(buffer, 0, new)
        return ops.remote_load(buffer, 0), before

    check(build, 3 * X, 2 * X)


def test_what_was_loaded_before_a_call_is_as_it_was():
    def build(x):
        buffer = buffer_of_x()
        graph = popxl.gir().create_graph(add_to, x, x)
        old = ops.remote_load(buffer, 0)
        product = old.reshape((1, 4)) @ popxl.constant(np.eye(4, dtype=np.float32))
        new, _ = ops.call(graph, ops.remote_load(buffer, 0), x)
        ops.remote_store(buffer, 0, new)
        return product + 1, old, ops.remote_load(buffer, 0)

    check(build, X[None] + 1, X, 2 * X)


OTHERWISE = ["loaded", "returned", "buffer", "other slot", "twice", "not stored"]


@pytest.mark.parametrize("use", OTHERWISE)
def test_a_slot_that_is_used_otherwise_too_is_copied(use):
    def build(x):
        buffer = buffer_of_x()
        graph = popxl.gir().create_graph(lambda t, u: (ops.add_(t, u),), x, x)
        loaded = ops.remote_load(buffer, 0)
        (new,) = ops.call(graph, loaded, loaded if use == "twice" else x)
        other = x * 0
        if use == "loaded":
            other = loaded + 0
        if use == "buffer":
            other = ops.remote_load(buffer, 0)
        if use != "not stored":
            ops.remote_store(buffer, 1 if use == "other slot" else 0, new)
        if use == "returned":
            ops.remote_store(buffer, 0, x * 0)
            other = new + 0
        return new, ops.remote_load(buffer, 0), other

    slot = {"other slot": X, "not stored": X, "returned": 0 * X}.get(use, 2 * X)
    other = {"loaded": X, "buffer": X, "returned": 2 * X}.get(use, 0 * X)
    check(build, 2 * X, slot, other)


def test_slots_of_a_loop_whose_number_a_tensor_says():
    def layer(graph, buffer, x, n):
        new, before = ops.call(graph, ops.remote_load(buffer, n), x)
        ops.remote_store(buffer, n, new)
        return x + before, n + 1

    def build(x):
        ir, buffer = popxl.gir(), popxl.remote_buffer((4,), popxl.float32, 3)
        graph = ir.create_graph(add_to, x, x)
        n = popxl.constant(0)
        body = ir.create_graph(lambda x, n: layer(graph, buffer, x, n), x, n)
        ops.repeat(body, 3, x, n)
        return tuple(ops.remote_load(buffer, i) for i in range(3))

    check(build, X, X, X)
