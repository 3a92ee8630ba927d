"""Names that programs import beside what they use: all are there; what is not done says so."""

from __future__ import annotations

import importlib

import numpy as np
import popxl
import popxl_addons as addons
import pytest
from popxl import ops
from popxl.ops.call import CallSiteInfo
from popxl.ops.collectives import all_reduce, all_reduce_identical_inputs
from popxl.ops.utils import (
    cast_if_needed,
    check_in_graph,
    check_tensor_ipu_and_tile_set,
    handle_negative_axis,
)
from popxl_addons.named_replica_grouping import fill_none_group, get_ild_replica_grouping
from popxl_addons.ops.grad_reduce_square_add import grad_reduce_square_add
from popxl_addons.ops.linear_layout import linear_layout
from popxl_addons.ops.replicated_strided_collectives import (
    replicated_all_gather_strided,
    replicated_all_reduce_strided,
    replicated_reduce_scatter_strided,
)
from popxl_addons.ops.static_sparse_ops import dense_const_sparse_matmul, random_sparse
from popxl_addons.transforms.repeat_graph import repeat_graph
from programs import run_program, store

GRADIENTS = [
    "popxl.transforms.autodiff",
    "popxl.transforms.GradGraphInfo",
    "popxl.transforms.ExpectedConnection",
    "popxl_addons.autodiff",
    "popxl_addons.autodiff_with_accumulation",
    "popxl_addons.recompute_graph",
    "popxl_addons.transforms.autodiff",
    "popxl_addons.transforms.recomputation.recompute_graph",
    "popxl_addons.transforms.batch_serialisation.batch_serialise_fwd_and_grad",
]
OPTIMISERS = [
    "popxl.ops.lamb_square",
    "popxl.ops.var_updates.adam_updater",
    "popxl.ops.var_updates.adam_var_update",
    "popxl.ops.var_updates.adamax_updater",
    "popxl.ops.var_updates.lamb_updater",
    "popxl_addons.optimizers.adam.AdamOptimizerStep",
]
FLOAT8 = [
    "popxl.fp8_utils.host_pow2scale_cast_to_fp8",
    "popxl.fp8_utils.host_pow2scale_cast_from_fp8",
    "popxl.fp8_utils.host_fp8_mse_scale",
    "popxl.ops.matmul_pow2scaled",
    "popxl.ops.conv_pow2scaled",
    "popxl.ops.conv_transpose_pow2scaled",
    "popxl.ops.pow2scale_cast_to_fp8",
    "popxl.ops.pow2scale_cast_from_fp8",
    "popxl_addons.layers.linear_fp8.LinearFP8",
    "popxl_addons.ops.fp8_amax_scale.fp8_amax_scale",
    "popxl_addons.ops.fp8_mse_scale.fp8_mse_scale",
]

REFUSALS = {
    "gradients are not there": GRADIENTS,
    "optimisers are not there": OPTIMISERS,
    "8-bit floats are not supported": FLOAT8,
}

MODULES = [
    "popxl.errors",
    "popxl.testing",
    "popxl.transforms.autodiff",
    "popxl.ops.collectives.collectives",
    "popxl_addons.transforms.autodiff",
    "popxl_addons.rts",
    "popxl_addons.debugging",
]

VALUES = [
    "popxl.tensor.HostTensor",
    "popxl.tensor.HostScalarTensor",
    "popxl.tensor.TensorLike",
    "popxl.tensor.ScalarType",
    "popxl.tensor.host_tensor_types",
    "popxl.errors.UndefinedValue",
    "popxl.transforms.ExpectedConnectionType.FwdGrad",
    "popxl.utils.downcast_np_dtypes",
    "popxl.ops.collectives.collectives.CollectiveOps",
    "popxl.dtypes.np_dtype_float8_143",
]


def found(dotted: str):
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return getattr(found(module), name)


@pytest.mark.parametrize(
    ("name", "why"), [(name, why) for why, names in REFUSALS.items() for name in names]
)
def test_what_is_not_done_says_so_when_it_is_called(name, why):
    with pytest.raises(NotImplementedError, match=why) as raised:
        found(name)(None, anything=1)
    assert "\n" not in str(raised.value)
    assert name.rpartition(".")[2] in str(raised.value)


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_there(name):
    assert importlib.import_module(name)


@pytest.mark.parametrize("name", VALUES)
def test_values_are_there(name):
    assert found(name) is not None


@pytest.mark.parametrize("dtype", [popxl.float8_143, popxl.float8_152])
def test_tensors_of_8_bit_floats_are_refused_in_a_line(main_graph, dtype):
    t = popxl.constant(np.zeros(2, np.float32))
    for use in (
        lambda: ops.cast(t, dtype),
        lambda: popxl.TensorSpec((2,), dtype),
        lambda: popxl.variable([1.0], dtype),
        lambda: popxl.h2d_stream((2,), dtype),
    ):
        with pytest.raises(ValueError, match=f"{dtype}: 8-bit floats are not supported here"):
            use()


# --- what is done ---


def test_writers_of_ops_check_their_inputs(main_graph):
    t = popxl.constant(np.zeros((2, 3), np.float32))
    check_in_graph(main_graph, t=t)
    check_tensor_ipu_and_tile_set(t=t, other=t)
    assert ((t + 0).ipu, (t + 0).tile_set) == (0, "compute")
    assert handle_negative_axis(t, -1) == 1
    assert cast_if_needed(t, popxl.float32) is t
    assert cast_if_needed(t, popxl.float16).dtype == popxl.float16
    other = main_graph.ir.create_empty_graph("other")
    with pytest.raises(ValueError, match="t: tensor .* belongs to graph main"):
        check_in_graph(other, t=t)
    with pytest.raises(TypeError, match="t: expected a tensor, got int 3"):
        check_in_graph(main_graph, t=3)


def test_the_module_of_calls_does_not_hide_the_op(main_graph):
    graph = main_graph.ir.create_graph(lambda: popxl.constant(1))
    assert isinstance(ops.call_with_info(graph), CallSiteInfo)
    assert len(ops.call(graph)) == 1


def test_functions_that_make_ops_stay_as_they_are():
    def make() -> int:
        return 7

    decorate = popxl.context.op_debug_context
    assert decorate(make) is make
    assert decorate("name")(make) is make
    assert popxl.context.debug_context_frame_offset(1)(make) is make


def test_places_of_an_ipu_change_nothing():
    def build(t):
        with popxl.ipu(1), popxl.transforms.merge_exchange(), popxl.transforms.io_tile_exchange():
            moved = [t.copy_to_ipu(1, 0), ops.ipu_copy(t, 2), linear_layout(t)]
        assert popxl.transforms.decompose_sum(t._graph) is t._graph
        return moved

    x = np.arange(4, dtype=np.float32)
    for y in run_program(build, x):
        np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("add", lambda x: x.sum(0)),
        ("mean", lambda x: x.mean(0)),
        ("mul", lambda x: x.prod(0)),
        ("min", lambda x: x.min(0)),
        ("max", lambda x: x.max(0)),
        ("square_add", lambda x: (x * x).sum(0)),
    ],
)
def test_tensors_of_one_replica_are_reduced(op, expected):
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for y in run_program(lambda *ts: all_reduce(list(ts), [0, 1, 2], op), *x):
        np.testing.assert_allclose(y, expected(x), rtol=1e-5)
    for y, part in zip(
        run_program(lambda *ts: all_reduce_identical_inputs(ts), *x), x, strict=True
    ):
        np.testing.assert_array_equal(y, part)


def test_reductions_that_are_none(main_graph):
    t = popxl.constant(np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="op 'median': allowed are add, mean"):
        all_reduce([t], op="median")
    with pytest.raises(ValueError, match="1 tensors were given and these IPUs"):
        all_reduce([t], ipus=[0, 1])


def test_strided_collectives_are_the_collectives():
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)

    def build(t):
        group = popxl.gir().replica_grouping(2, 2)
        part = replicated_reduce_scatter_strided(t, "add", group, True)
        return replicated_all_reduce_strided(t, "add", group), replicated_all_gather_strided(
            part, group
        )

    for y in run_program(build, x, replicas=4):
        np.testing.assert_allclose(y, np.tile(x[:2] + x[2:], (2, 1)), rtol=1e-6)


def test_a_squared_norm_without_its_scale():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float16)

    def build(t):
        scale = popxl.constant(8, popxl.float16)
        return grad_reduce_square_add(t, 8), grad_reduce_square_add(t, scale)

    for y in run_program(build, x):
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, np.square(x.astype(np.float32) / 8).sum(), rtol=1e-5)


class Sparse:
    """As much of a matrix of scipy.sparse as is asked for."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def astype(self, dtype):
        return Sparse(self.array.astype(dtype))

    def toarray(self):
        return self.array


def test_products_with_a_sparse_constant():
    x, w = (
        np.random.default_rng(0).normal(size=s).astype(np.float32) for s in ((1, 2, 30), (30, 20))
    )
    assert random_sparse(w, 0.3) is w
    assert 0.1 < np.count_nonzero(w) / w.size < 0.5
    (y,) = run_program(lambda t: dense_const_sparse_matmul(t, Sparse(w), 20), x)
    np.testing.assert_allclose(y, x @ w, rtol=1e-5, atol=1e-6)


def test_groupings_within_a_link_domain():
    with popxl.Ir(replication=128).main_graph as graph:
        ir = graph.ir
        assert get_ild_replica_grouping() == ir.replica_grouping(1, 64)
        assert get_ild_replica_grouping(ir.replica_grouping(2, 64)) == ir.replica_grouping(2, 32)
        near = ir.replica_grouping(4, 2)
        assert get_ild_replica_grouping(near) is near
        assert fill_none_group(None, near) is near
        assert fill_none_group(near, ir.replica_grouping()) is near


def test_a_buffer_for_the_parts_of_a_batch():
    with popxl.Ir(replication=2).main_graph as graph:
        t = popxl.constant(np.zeros((2, 3), np.float32))
        whole = addons.batch_serial_buffer(t, 4, rows=2)
        assert (whole.tensor_shape, whole.entries) == ((2, 3), 8)
        parts = addons.batch_serial_buffer(t, 4, shard_group=graph.ir.replica_grouping())
        assert (parts.tensor_shape, parts.meta_shape) == ((3,), (2, 3))
        assert addons.RemoteHandle(whole).row_offset == 0


@pytest.mark.parametrize(
    ("assignment", "finer"),
    [
        ([0, 0, 1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3]),
        ([0, 1, 2, 3, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([0, 1, 0, 1, 2, 3, 2, 3], [0, 1, 0, 1, 2, 3, 2, 3]),
    ],
)
def test_the_regular_part_of_a_grouping(assignment, finer):
    ir = popxl.Ir(replication=8)
    assert ir.replica_grouping_from_assignments(assignment).const_rg.assignment == finer


def test_locations_of_tensors():
    default = popxl.TensorLocation()
    assert default.storage is popxl.TensorStorage.OnChip
    assert default.replicated_tensor_sharding is popxl.ReplicatedTensorSharding.Off
    sharded = popxl.TensorLocation(popxl.TensorStorage.OffChip, popxl.ReplicatedTensorSharding.On)
    assert sharded != default
    assert sharded == popxl.TensorLocation(sharded.storage, sharded.replicated_tensor_sharding)
    assert "OffChip" in repr(sharded)


@pytest.mark.parametrize("count", [1, 5])
def test_a_graph_is_made_to_repeat_what_it_does(count):
    ir = popxl.Ir()
    with ir.main_graph:
        kept = popxl.variable(np.float32(1))
        stream = popxl.h2d_stream((), popxl.float32)
        ops.add_(kept, ops.host_load(stream) * 2)
        (stored,) = store([kept + 1])
    body = repeat_graph(ir.main_graph, count)
    assert (body is ir.main_graph) == (count == 1)
    ir.num_host_transfers = count
    given = np.arange(count, dtype=np.float32)
    with popxl.Session(ir) as session:
        outputs = session.run({stream: given.reshape(count) if count > 1 else given[0]})
        total = 1 + 2 * np.cumsum(given)
        np.testing.assert_array_equal(outputs[stored].reshape(-1), total + 1)
        assert session.get_tensor_data(kept) == total[-1]


def test_a_graph_with_outputs_is_not_repeated(main_graph):
    graph = main_graph.ir.create_graph(lambda x: x + 1, popxl.constant(1))
    with pytest.raises(ValueError, match="has outputs, so it cannot be repeated"):
        repeat_graph(graph, 2)


@pytest.mark.parametrize("modified", [False, True])
def test_a_tensor_is_routed_through_calls_loops_and_branches(modified):
    ir = popxl.Ir()
    inner, outer, other = (ir.create_empty_graph(n) for n in ("inner", "outer", "other"))
    with outer:
        ops.call(inner)
        ops.conditional(popxl.constant(True), inner, other)
    with ir.main_graph, popxl.in_sequence():
        kept = popxl.variable(np.float32(1))
        ops.repeat(outer, 3)
        ops.call(inner)
    with inner:
        first = addons.route_tensor_into_graph(kept, modified=modified)
        assert addons.route_tensor_into_graph(kept, modified=modified) is first
        ops.add_(first, first)
    assert (len(inner.inputs), len(outer.inputs), len(other.inputs)) == (1, 1, 0)
    with popxl.Session(ir) as session:
        session.run()
        assert session.get_tensor_data(kept) == (2**7 if modified else 1)


def test_a_tensor_is_not_routed_into_a_graph_that_is_not_called(main_graph):
    t = popxl.constant(1)
    with pytest.raises(ValueError, match="is not in the graph alone_0, nor in one that calls"):
        addons.route_tensor_into_graph(t, main_graph.ir.create_empty_graph("alone"))
