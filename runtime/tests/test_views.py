"""Views, `slice_`, `concat_` and their like: what is written to them and what they share."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import popxl
import pytest
from popxl import TensorByRef, ops
from programs import LAYOUTS, by_replica, in_turn, numbers, run_on_layout, run_program, store

X = np.arange(24, dtype=np.float32).reshape(4, 6)
SLICES = {
    "part": ((1, 4, None), np.s_[1:4]),
    "two axes": (([0, 2], [3, 5], None), np.s_[0:3, 2:5]),
    "steps": ((None, None, [2, 3]), np.s_[::2, ::3]),
    "backwards": (([3, 4], [0, None], [-1, -2]), np.s_[3:0:-1, 4::-2]),
    "nothing": ((2, 2, None), np.s_[2:2]),
    "nothing backwards": ((0, 3, -1), np.s_[0:3:-1]),
    "one": (([2, 5], [3, 6], None), np.s_[2:3, 5:6]),
}
ROOTS = ["stream", "variable", "loaded"]


def root(kind: str, x: popxl.Tensor) -> popxl.Tensor:
    """A tensor that holds `x`, of another kind of memory."""
    if kind == "stream":
        return x
    if kind == "variable":
        v = popxl.variable(np.zeros(x.shape, x.dtype.as_numpy()))
        return ops.var_updates.copy_var_update_(v, x)
    buffer = popxl.remote_buffer(x.shape, x.dtype, 1)
    ops.remote_store(buffer, 0, x)
    return ops.remote_load(buffer, 0)


def add_one(t: TensorByRef):
    ops.add_(t, 1)


def written(x: np.ndarray, key) -> np.ndarray:
    result = x.copy()
    result[key] += 100
    return result


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ROOTS)
@pytest.mark.parametrize("name", SLICES)
def test_a_slice_and_what_it_is_of_are_written_together(name, kind, layout, rng):
    (start, stop, step), key = SLICES[name]
    x = numbers(rng, (4, 6), popxl.float32)

    def build(x):
        base = root(kind, x)
        part, before = ops.slice_(base, start, stop, step), base + 0
        ops.add_(part, 100)
        after = base + 0
        ops.scaled_add_(base, base, 0.0, 2.0)
        return part, before, after

    part, before, after = run_on_layout(layout, build, x)
    expected = by_replica(layout, lambda x: written(x, key), [x])
    np.testing.assert_array_equal(part, by_replica(layout, lambda x: 2 * written(x, key)[key], [x]))
    np.testing.assert_array_equal(before, by_replica(layout, lambda x: x, [x]))
    np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize("dtype", [popxl.uint32, popxl.int8, popxl.bfloat16, popxl.bool], ids=str)
def test_a_slice_of_other_dtypes_is_overwritten(dtype, rng):
    x, y = numbers(rng, (4, 3), dtype, 0, 2, count=2)

    def build(x, y):
        ops.var_updates.copy_var_update_(ops.slice_(x, 1, 3), y[:2])
        return x

    expected = x.copy()
    expected[1:3] = y[:2]
    np.testing.assert_array_equal(run_program(build, x, y)[0], expected)


def test_a_slice_of_everything_is_the_tensor():
    def build(x):
        assert ops.slice_(x) is x
        assert ops.slice_(x, axis=1) is x
        return x

    run_program(build, X)


def test_a_slice_whose_replicas_get_different_values():
    """The variable is held once for all replicas until they differ."""
    ir = popxl.Ir(replication=2)
    with ir.main_graph:
        stream = popxl.h2d_stream((2,), popxl.float32)
        v = popxl.variable(np.zeros(4, np.float32), retrieval_mode="all_replicas")
        ops.var_updates.copy_var_update_(ops.slice_(v, 1, 3), ops.host_load(stream))
        (out,) = store([v])
    with popxl.Session(ir) as session:
        got = session.run({stream: np.array([[1, 2], [3, 4]], np.float32)})[out]
        np.testing.assert_array_equal(got, [[0, 1, 2, 0], [0, 3, 4, 0]])
        np.testing.assert_array_equal(session.get_tensor_data(v), got)


@pytest.mark.parametrize("kind", ROOTS)
@pytest.mark.parametrize("axis", [0, 1])
@in_turn("layout", LAYOUTS)
def test_joined_tensors_are_written_together(layout, axis, kind, rng):
    x, y = numbers(rng, (2, 3), popxl.float32), numbers(rng, (2, 3), popxl.float32)

    def build(x, y):
        a, b = root(kind, x), y
        joined = ops.concat_((a, b), axis)
        before = joined + 0
        ops.relu_(joined)
        ops.add_(b, 1)
        return before, joined, a, b

    before, joined, a, b = run_on_layout(layout, build, x, y)

    def reference(x, y):
        return np.concatenate([np.maximum(x, 0), np.maximum(y, 0) + 1], axis)

    np.testing.assert_array_equal(
        before, by_replica(layout, lambda x, y: np.concatenate([x, y], axis), [x, y])
    )
    np.testing.assert_array_equal(joined, by_replica(layout, reference, [x, y]))
    np.testing.assert_array_equal(np.concatenate([a, b], axis + 1), joined)


def test_parts_of_one_tensor_are_joined_and_written():
    def build(x):
        ends = ops.concat_((ops.slice_(x, 2, 4), ops.slice_(x, 0, 2)))
        ops.var_updates.copy_var_update_(ends, ends * 10)
        return x, ends

    x, ends = run_program(build, X)
    np.testing.assert_array_equal(x, X * 10)
    np.testing.assert_array_equal(ends, np.concatenate([X[2:], X[:2]]) * 10)


def test_tensors_that_share_elements_are_joined_to_be_read_alone():
    def build(x):
        joined = ops.concat_((x, x.reshape_((4, 6))))
        ops.add_(x, 1)
        return joined

    np.testing.assert_array_equal(run_program(build, X)[0], np.concatenate([X + 1, X + 1]))
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable(X, name="v")
        ops.add_(ops.concat_((v, ops.slice_(v, 0, 1))), 1)
    with pytest.raises(ValueError, match="concat joins v and slice, which share elements"):
        popxl.Session(ir)


@pytest.mark.parametrize("kind", ROOTS)
def test_views_go_by_reference(kind):
    def build(x):
        base = root(kind, x)
        part = ops.slice_(base, [1, 0], [3, 2])
        joined = ops.concat_((part, ops.slice_(base, [1, 3], [3, 5])), 1).transpose_()
        for t in (base, part, joined):
            ops.call(popxl.gir().create_graph(add_one, t), t)
        ops.repeat(popxl.gir().create_graph(add_one, part), 3, part)
        return base, part, joined

    expected = X + 1
    expected[1:3, 0:2] += 5
    expected[1:3, 3:5] += 1
    base, part, joined = run_program(build, X)
    np.testing.assert_array_equal(base, expected)
    np.testing.assert_array_equal(part, expected[1:3, 0:2])
    np.testing.assert_array_equal(joined, expected[1:3][:, [0, 1, 3, 4]].T)


def test_parts_go_by_reference_together_unless_they_share_elements():
    def both(a: TensorByRef, b: TensorByRef):
        ops.add_(a, 1)
        ops.add_(b, a)

    def build(x):
        base = root("variable", x).transpose_()
        a, b = ops.slice_(base, 0, 2), ops.slice_(base, 4, 6)
        ops.call(popxl.gir().create_graph(both, a, b), a, b)
        return base

    expected = X.T.copy()
    expected[:2] += 1
    expected[4:] += expected[:2]
    np.testing.assert_array_equal(run_program(build, X)[0], expected)
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable(X)
        a, b = ops.slice_(v, [0, 0], [2, 3]), ops.slice_(v, [1, 2], [3, 5])
        ops.call(ir.create_graph(both, a, b), a, b)
    with pytest.raises(ValueError, match="share their elements"):
        popxl.Session(ir)


def test_a_slot_of_a_cache_is_written_through_a_slice():
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((4, 6), popxl.float32, 1)
        slot = popxl.remote_variable(X, buffer)
        cache = ops.remote_load(buffer, 0)
        ops.exp_(ops.slice_(cache, 1, 2))
        ops.remote_store(buffer, 0, cache)
    with popxl.Session(ir) as session:
        session.run()
        got = session.get_tensor_data(slot)
    expected = X.copy()
    expected[1] = np.exp(X[1])
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_values_are_protected_from_writes_through_slices():
    def build(x):
        v = root("variable", x)
        values = [v[1:3], ops.identity(v), ops.slice_(v, 1, 3) + 0]
        ops.add_(ops.slice_(v, 0, 2), 5)
        return values

    rows, whole, copy = run_program(build, X)
    np.testing.assert_array_equal(rows, X[1:3])
    np.testing.assert_array_equal(whole, X)
    np.testing.assert_array_equal(copy, X[1:3])


# --- random programs, against a model in which a tensor is the places of its elements ---


class Model:
    """Tensors on numpy: one row of elements, and for each tensor where in it its elements are."""

    def __init__(self, roots: list[np.ndarray]):
        self.elements = np.concatenate([r.ravel() for r in roots])
        ends = np.cumsum([0, *(r.size for r in roots)])
        spans = zip(pairwise(ends), roots, strict=True)
        self.places = [np.arange(a, b).reshape(r.shape) for (a, b), r in spans]


def step(rng, model: Model, tensors: list, results: list) -> None:
    """One op on a tensor chosen by chance, in the model and in the program."""
    at = int(rng.integers(len(tensors)))
    t, places = tensors[at], model.places[at]
    kind = rng.choice(["slice", "reshape", "transpose", "concat", "add", "put", "call", "read"])
    if kind == "slice" and places.ndim:
        bounds = [sorted(rng.integers(0, n + 1, 2)) for n in places.shape]
        steps = [int(rng.choice([1, 1, 2, -1])) for _ in bounds]
        keys = [
            slice(int(a), int(b), s) if s > 0 else slice(int(b), int(a), s)
            for (a, b), s in zip(bounds, steps, strict=True)
        ]
        parts = [[k.start for k in keys], [k.stop for k in keys], steps]
        tensors.append(ops.slice_(t, *parts))
        model.places.append(places[tuple(keys)])
    elif kind == "reshape":
        tensors.append(t.reshape_((-1,)) if places.size else t)
        model.places.append(places.reshape(-1) if places.size else places)
    elif kind == "transpose":
        tensors.append(t.transpose_())
        model.places.append(places.T)
    elif kind == "concat" and places.ndim:
        same = [i for i, p in enumerate(model.places) if p.shape[1:] == places.shape[1:] and p.ndim]
        other = int(rng.choice(same))
        both = np.concatenate([places, model.places[other]])
        if np.unique(both).size == both.size:
            tensors.append(ops.concat_((t, tensors[other])))
            model.places.append(both)
    elif kind == "add":
        ops.add_(t, 1)
        model.elements[places] += 1
    elif kind == "put":
        ops.scaled_add_(t, t, 0.0, -1.0)
        model.elements[places] *= -1
    elif kind == "call":
        ops.call(popxl.gir().create_graph(add_one, t), t)
        model.elements[places] += 1
    elif kind == "read":
        results.append((t + 0, model.elements[places].copy()))


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_of_views(seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(1, 99, (3, 4)).astype(np.float32) for _ in range(3)]
    model, expected = Model(arrays), []

    def build(*given):
        tensors = [root(kind, x) for kind, x in zip(ROOTS, given, strict=True)]
        results: list = []
        for _ in range(25):
            step(rng, model, tensors, results)
        expected.extend(want for _, want in results)
        expected.extend(model.elements[places] for places in model.places)
        return [*(got for got, _ in results), *tensors]

    try:
        got = run_program(build, *arrays)
    except ValueError as error:
        # That places are apart may not be certain from slices of reshaped tensors.
        assert "share elements" in str(error)
        return
    for one, want in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, want)
