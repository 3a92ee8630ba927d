"""Layer norm over a dimension that several replicas hold, against torch's of the whole."""

import ml_dtypes
import numpy as np
import popxl
import pytest
import torch
from popxl_addons.array_munging import shard, unshard
from popxl_addons.layers import LayerNormDistributed
from popxl_addons.ops.layer_norm_distributed import layer_norm_distributed
from popxl_torch.analysis.cost import cost_of

HIDDEN_SIZE = 32


def _expected(x, weight, bias, eps=1e-5):
    tensors = (torch.from_numpy(np.asarray(v, np.float64)) for v in (x, weight, bias))
    x, weight, bias = tensors
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps).numpy()


def _build(weight, bias, parts, eps=1e-5):
    """`parts` neighbouring replicas hold one hidden dimension."""

    def build(x):
        group = popxl.gir().replica_grouping(stride=1, group_size=parts)
        factories, graph = LayerNormDistributed(group).create_graph(x, eps)
        variables = factories.init()
        values = {variables.weight: weight, variables.bias: bias}
        data = {
            variable: (shard(value, parts, 0) if parts > 1 else value).astype(x.dtype.as_numpy())
            for variable, value in values.items()
        }
        return graph.bind(variables).call(x)[0], data

    return build


@pytest.fixture
def parameters(rng):
    return rng.standard_normal((2, HIDDEN_SIZE)).astype(np.float32)


@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize(("rows", "eps"), [((1,), 1e-5), ((5,), 1e-2), ((2, 3), 1e-5)])
def test_parts_of_the_hidden_dimension_are_normalised_together(
    run, rng, parameters, replicas, rows, eps
):
    x = (rng.standard_normal((*rows, HIDDEN_SIZE)) * 3 + 2).astype(np.float32)

    (y,) = run(_build(*parameters, replicas, eps), shard(x, replicas, -1), replicas=replicas)

    np.testing.assert_allclose(unshard(y, -1), _expected(x, *parameters, eps), rtol=1e-5, atol=1e-5)


def test_one_replica_normalises_its_whole_dimension(run, rng, parameters):
    x = rng.standard_normal((5, HIDDEN_SIZE)).astype(np.float32)

    (y,) = run(_build(*parameters, 1), x)

    np.testing.assert_allclose(y, _expected(x, *parameters), rtol=1e-5, atol=1e-5)


def test_each_group_of_replicas_normalises_its_own_rows(run, rng, parameters):
    x = rng.standard_normal((2, 3, HIDDEN_SIZE)).astype(np.float32)
    on_replicas = np.concatenate([shard(rows, 2, -1) for rows in x])

    (y,) = run(_build(*parameters, 2), on_replicas, replicas=4)

    for i in range(2):
        np.testing.assert_allclose(
            unshard(y[2 * i : 2 * i + 2], -1), _expected(x[i], *parameters), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(("dtype", "digits"), [(np.float16, 11), (ml_dtypes.bfloat16, 8)])
def test_half_types_are_rounded_only_at_the_end(run, rng, parameters, dtype, digits):
    x = (rng.standard_normal((4, HIDDEN_SIZE)) * 30 + 100).astype(dtype)
    weight, bias = parameters.astype(dtype)

    (y,) = run(_build(weight, bias, 2), shard(x, 2, -1), replicas=2)

    assert y.dtype == dtype
    expected = _expected(x, weight, bias)
    difference = np.abs(unshard(y, -1).astype(np.float64) - expected)
    assert (difference <= np.abs(expected) * 2.0**-digits + 1e-5).all()


def test_a_large_mean_does_not_swamp_the_variance(run, rng, parameters):
    x = (rng.standard_normal((4, HIDDEN_SIZE)) + 4096).astype(np.float32)

    (y,) = run(_build(*parameters, 2), shard(x, 2, -1), replicas=2)

    np.testing.assert_allclose(unshard(y, -1), _expected(x, *parameters), rtol=1e-3, atol=1e-3)


def test_squares_beyond_half_precision_do_not_overflow(run, parameters):
    x = np.linspace(-60000, 60000, HIDDEN_SIZE).astype(np.float16)[None]
    weight, bias = parameters.astype(np.float16)

    (y,) = run(_build(weight, bias, 2), shard(x, 2, -1), replicas=2)

    np.testing.assert_allclose(unshard(y, -1), _expected(x, weight, bias), rtol=2e-3, atol=1e-3)


def test_weights_lie_on_the_members_of_a_group():
    ir = popxl.Ir(replication=4)
    with ir.main_graph:
        x = popxl.TensorSpec((2, 8), popxl.float32)
        factories, _ = LayerNormDistributed(ir.replica_grouping(2, 2)).create_graph(x)
        default, _ = LayerNormDistributed().create_graph(x)

    assert list(factories.weight.replica_grouping.assignment) == [0, 0, 1, 1]
    assert default.bias.host_shape == (4, 8)


def test_the_op_is_one_graph_of_a_recognisable_name():
    ir = popxl.Ir(replication=2)
    x = popxl.TensorSpec((2, 8), popxl.float32)

    def layers(x, w, b):
        first = layer_norm_distributed(x, w, b)
        second = layer_norm_distributed(first, w, b)
        return layer_norm_distributed(second, w, b, 1e-3)

    w = popxl.TensorSpec((8,), popxl.float32)
    with ir.main_graph:
        graph = ir.create_graph(layers, x, w, w)

    names = [called.name for called in graph.called_graphs]
    assert len(names) == 2, "one graph for each epsilon"
    assert all(name.startswith("popxl_addons.layer_norm_distributed") for name in names)


def test_mean_and_variance_take_one_collective():
    ir = popxl.Ir(replication=4)
    x, w = popxl.TensorSpec((3, 8), popxl.float32), popxl.TensorSpec((8,), popxl.float32)
    with ir.main_graph:
        cost = cost_of(ir.create_graph(layer_norm_distributed, x, w, w))

    assert cost.collective_calls == 1
    assert cost.collective_bytes == 4 * 3 * 2  # of every row a sum, and squares


def test_parameters_that_do_not_fit_are_refused(main_graph):
    spec = popxl.TensorSpec

    def build(t, w, b):
        return layer_norm_distributed(t, w, b)

    for w, b, name in (((4,), (8,), "w"), ((8,), (1, 8), "b")):
        with pytest.raises(ValueError, match=rf"{name} must be float32 \(8,\)"):
            popxl.gir().create_graph(
                build,
                spec((2, 8), popxl.float32),
                spec(w, popxl.float32),
                spec(b, popxl.float32),
            )
