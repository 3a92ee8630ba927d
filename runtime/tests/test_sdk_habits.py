"""What PopXL takes without being asked to, and programs rely on."""

from __future__ import annotations

import operator

import numpy as np
import popxl
import pytest
import torch
from popxl import ops
from popxl_addons.dot_tree import DotTree
from programs import LAYOUTS, by_replica, in_turn, numbers, run_on_layout, run_program, store

# --- truth, length and iteration of a tensor ---


def test_a_tensors_truth_is_whether_it_has_a_length(main_graph):
    assert popxl.constant(np.zeros((2, 0)))  # two rows, empty ones
    assert not popxl.constant(np.zeros((0, 2)))
    assert popxl.constant([False])
    with pytest.raises(ValueError, match="one is a scalar and has no length"):
        bool(popxl.constant(1, name="one"))


def test_a_tensor_cannot_be_searched_or_iterated_over(main_graph):
    t = popxl.constant([1, 2])
    with pytest.raises(TypeError):
        iter(t)
    with pytest.raises(TypeError):
        1 in t  # noqa: B015 - refused


# --- masks ---

X = np.arange(12, dtype=np.float32).reshape(4, 3) - 5


@in_turn("shape", [(4, 3), (4, 1), (3,), ()])
@pytest.mark.parametrize("made_by", ["tensor", "numpy", "torch", "list"])
def test_a_bool_index_is_a_mask(rng, shape, made_by):
    mask = rng.integers(0, 2, shape).astype(bool)
    if made_by == "list" and not shape:
        return  # a list has a dimension
    make = {
        "tensor": popxl.constant,
        "numpy": np.asarray,
        "torch": torch.from_numpy,
        "list": lambda a: a.tolist(),
    }[made_by]
    (got,) = run_program(lambda x: x[make(mask)], X)
    np.testing.assert_array_equal(got, np.where(mask, X, 0))


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [popxl.float16, popxl.int32], ids=str)
def test_a_mask_of_each_replica(rng, layout, dtype):
    values = [numbers(rng, (4, 3), dtype), numbers(rng, (4, 3), popxl.int32, 0, 2)]
    values[1] = [m.astype(bool) for m in values[1]]
    (got,) = run_on_layout(layout, lambda x, mask: x[mask], *values)
    expected = by_replica(layout, lambda x, mask: np.where(mask, x, 0), values)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("indices", [np.array([2, 0]), torch.tensor([2, 0]), [2, 0]], ids=type)
def test_an_integer_index_gathers_rows(indices):
    (got,) = run_program(lambda x: x[indices], X)
    np.testing.assert_array_equal(got, X[[2, 0]])


@pytest.mark.parametrize("key", ["a", True, 1.0, np.array([0.5])], ids=repr)
def test_other_indices_are_refused(main_graph, key):
    t = popxl.constant([1, 2])
    with pytest.raises(TypeError, match="an index must"):
        t[key]


# --- operators ---

ONES = np.ones((2, 2), np.float32)
NUMBERS = {
    "x ** 2": lambda x: x**2,
    "2 ** x": lambda x: 2**x,
    "x ** list": lambda x: x ** [1, 2, 3],
    "7.0 % x": lambda x: 7.0 % x,
    "x % 2": lambda x: x % 2,
    "array % x": lambda x: np.array([[7, 8, 9]], np.float32) % x,
    "1 - x": lambda x: 1 - x,
    "6 / x": lambda x: 6 / x,
    "2 * x + 1": lambda x: 2 * x + 1,
    "array @ x": lambda x: ONES @ x,
    "x @ array": lambda x: x @ np.ones((3, 2), np.float32),
    "- x": operator.neg,
}
BOOLS = {
    "True & x": lambda x: True & x,
    "x & list": lambda x: x & [[True, False, True]],
    "False | x": lambda x: False | x,
    "x | True": lambda x: x | True,
    "~ x": operator.invert,
}


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("case", NUMBERS)
def test_operators_with_numbers_are_numpys(rng, case, layout):
    values = [numbers(rng, (2, 3), popxl.float32, 1, 4)]
    (got,) = run_on_layout(layout, NUMBERS[case], *values)
    np.testing.assert_allclose(got, by_replica(layout, NUMBERS[case], values), rtol=1e-6)


@pytest.mark.parametrize("case", BOOLS)
def test_operators_with_bools_are_numpys(rng, case):
    x = rng.integers(0, 2, (2, 3)).astype(bool)
    (got,) = run_program(BOOLS[case], x)
    np.testing.assert_array_equal(got, BOOLS[case](x))


def test_integers_have_powers_and_remainders():
    x = np.array([1, 2, 3], np.int32)
    got = run_program(lambda x: [x**2, 2**x, 7 % x], x)
    for made, expected in zip(got, [x**2, 2**x, 7 % x], strict=True):
        np.testing.assert_array_equal(made, expected)
        assert made.dtype == np.int32


def test_adding_in_place_writes_to_the_tensor():
    def build(x):
        y = x
        y += 2
        return [x, y]

    for got in run_program(build, X):
        np.testing.assert_array_equal(got, X + 2)


def test_a_scalar_transposed_is_itself():
    got = run_program(lambda x: [x.T, x.T_, x.transpose()], np.float32(3))
    assert [float(value) for value in got] == [3, 3, 3]


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8], ids=lambda d: d.__name__)
def test_the_condition_of_where_may_be_numbers(dtype):
    condition = np.array([0, 1, 2, 0], dtype)
    (got,) = run_program(lambda c: ops.where(c, popxl.constant([1, 2, 3, 4]), 0), condition)
    np.testing.assert_array_equal(got, [0, 2, 3, 0])


# --- dtypes, names, trees ---


def test_dtypes_of_arrays_and_tensors():
    assert popxl.dtype.as_dtype(np.zeros(2, np.uint16)) is popxl.uint16
    assert popxl.dtype.as_dtype(torch.zeros(2, dtype=torch.float16)) is popxl.float16
    assert popxl.dtype.as_dtype(torch.zeros(2, dtype=torch.bool)) is popxl.bool
    assert popxl.dtype.as_dtype(np.float32(1)) is popxl.float32
    with pytest.raises(ValueError, match="not the name of an element type"):
        popxl.dtype.as_dtype(np.zeros(2, "datetime64[s]"))


def test_name_scopes_join_with_a_slash(main_graph):
    with popxl.name_scope("s") as scopes:
        assert popxl.variable(1, name="x").name == "s/x"
        assert scopes == ["s"]
        with popxl.name_scope("t"):
            assert (popxl.constant(1, name="x") + 1).name.startswith("s/t/")
        graph = main_graph.ir.create_graph(lambda x: x + 1, popxl.TensorSpec((), popxl.int32))
    assert graph.inputs[0].name == "s/x"
    assert graph.get_tensor("s/x") is graph.inputs[0]
    assert graph.get_tensor(graph.inputs[0].id) is graph.inputs[0]


def test_inserting_what_exists_in_a_tree_is_asked_for():
    tree = DotTree()
    tree.insert("a.b", 1)
    with pytest.raises(ValueError, match="'a' already exists"):
        tree.insert("a.b", 2)
    tree.insert("a.b", 2, overwrite=True)
    assert tree.a.b == 2


# --- shapes of what comes from the host ---

REPLICAS = {1: (), 4: (4,)}


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("given", [(), (1,), (1, 1)])
def test_one_element_may_have_any_shape(replicas, shape, given):
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph:
        x = popxl.h2d_stream(shape, popxl.float32)
        (y,) = store([ops.host_load(x) * 2])
    lead = REPLICAS[replicas]
    data = np.arange(replicas, dtype=np.float32) + 1
    with popxl.Session(ir) as session:
        got = session.run({x: data.reshape(lead + given)})[y]
        into = {y: np.zeros(lead + given, np.float32)}
        session.run_with_outputs({x: data.reshape(lead + given)}, into)
    np.testing.assert_array_equal(got, 2 * data.reshape(lead + shape))
    np.testing.assert_array_equal(into[y], 2 * data.reshape(lead + given))


@pytest.mark.parametrize("given", [(), (1,), (4,), (1, 2), (2, 1)])
def test_several_elements_may_not(given):
    ir = popxl.Ir()
    with ir.main_graph:
        x = popxl.h2d_stream((2,), popxl.float32, "x")
        store([ops.host_load(x)])
    with popxl.Session(ir) as session, pytest.raises(ValueError, match="stream x: expected"):
        session.run({x: np.zeros(given, np.float32)})


@pytest.mark.parametrize("replicas", REPLICAS)
def test_more_transfers_than_a_run_makes_may_be_given(replicas):
    ir = popxl.Ir(replication=replicas)
    ir.num_host_transfers = 2
    with ir.main_graph:
        x = popxl.h2d_stream((3,), popxl.int32, "x")
        y = popxl.d2h_stream((3,), popxl.int32)
        for _ in range(2):
            ops.host_store(y, ops.host_load(x) + 1)
    data = np.arange(5 * replicas * 3, dtype=np.int32).reshape((5, *REPLICAS[replicas], 3))
    into = {y: np.zeros_like(data)}
    with popxl.Session(ir) as session:
        np.testing.assert_array_equal(session.run({x: data})[y], data[:2] + 1)
        session.run_with_outputs({x: data}, into)
        with pytest.raises(ValueError, match="stream x: expected an array of shape"):
            session.run({x: data[:1]})
    np.testing.assert_array_equal(into[y][:2], data[:2] + 1)
    np.testing.assert_array_equal(into[y][2:], 0)


@pytest.mark.parametrize("shapes", [((1, 1), (1,)), ((1, 2, 3), (2, 3)), ((2, 3), (6,))], ids=str)
@pytest.mark.parametrize("replicas", REPLICAS)
def test_a_remote_variable_fills_a_slot_of_another_shape(replicas, shapes):
    shape, slot = shapes
    data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph:
        buffer = popxl.remote_buffer(slot, popxl.float32, 2)
        v = popxl.remote_variable(data, buffer, 1)
        loaded = ops.remote_load(buffer, 1)
        assert (v.shape, loaded.shape) == (shape, slot)
        (y,) = store([loaded])
        ops.remote_store(buffer, 1, loaded + 1)
    with popxl.Session(ir) as session:
        got = session.run()[y]
        np.testing.assert_array_equal(session.get_tensor_data(v), data + 1)
        session.write_variable_data(v, -data)
        again = session.run()[y]
    np.testing.assert_array_equal(got, np.broadcast_to(data.reshape(slot), got.shape))
    np.testing.assert_array_equal(again, np.broadcast_to(-data.reshape(slot), got.shape))


@pytest.mark.parametrize("replicas", REPLICAS)
def test_one_groups_data_may_have_a_leading_axis(replicas):
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph:
        v = popxl.variable(X, name="v")
        (y,) = store([v + 0])
    with popxl.Session(ir) as session:
        session.write_variables_data({v: X[None] * 2})
        assert session.get_tensor_data(v).shape == X.shape
        got = session.run()[y]
        with pytest.raises(ValueError, match=r"expected data of shape \(4, 3\)"):
            session.write_variables_data({v: np.stack([X, X])})
    np.testing.assert_array_equal(got, np.broadcast_to(2 * X, got.shape))
