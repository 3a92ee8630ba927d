"""Layers and losses, against those of the same name in torch."""

import numpy as np
import popxl
import popxl_addons as addons
import pytest
import torch
from popxl import ops
from popxl_addons.array_munging import pad_axis, shard
from popxl_addons.layers import Conv2D, Embedding, GroupNorm, LayerNorm, Linear, LinearGQ
from popxl_addons.ops.group_quantize_decompress import (
    group_quantize_compress_numpy,
    group_quantize_decompress_numpy,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def _layer(module, torch_layer, **options):
    """A program of one layer with the weights of a torch layer."""

    def build(x):
        factories, graph = module.create_graph(x)
        variables = factories.init()
        weights = type(module).torch_mapping(variables, torch_layer, x.dtype, **options)
        return graph.bind(variables).call(x)[0], dict(weights)

    return build


def _torch(layer, x):
    with torch.no_grad():
        return layer(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 8), (5, 8), (2, 3, 8)])
def test_linear_is_torchs(run, rng, bias, shape):
    layer = torch.nn.Linear(8, 6, bias=bias)
    x = rng.standard_normal(shape).astype(np.float32)

    (y,) = run(_layer(Linear(6, bias), layer), x)

    np.testing.assert_allclose(y, _torch(layer, x), rtol=1e-5, atol=1e-6)


def test_linear_in_half_precision_has_half_precision_weights(run, rng):
    layer = torch.nn.Linear(8, 6)
    x = rng.standard_normal((5, 8)).astype(np.float16)

    (y,) = run(_layer(Linear(6), layer), x)

    assert y.dtype == np.float16
    np.testing.assert_allclose(y, _torch(layer, x.astype(np.float32)), rtol=1e-2, atol=1e-2)


def test_linear_with_its_columns_on_two_replicas_gives_both_halves(run, rng):
    x = rng.standard_normal((3, 4)).astype(np.float32)
    weight = rng.standard_normal((4, 6)).astype(np.float32)

    def build(x):
        each = popxl.gir().replica_grouping(group_size=1)
        factories, graph = Linear(3, False, each).create_graph(x)
        variables = factories.init()
        return graph.bind(variables).call(x)[0], {variables.weight: shard(weight, 2, 1)}

    (y,) = run(build, np.stack([x, x]), replicas=2)

    np.testing.assert_allclose(np.concatenate(y, axis=1), x @ weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 16), (16,)])
@pytest.mark.parametrize("eps", [1e-5, 1e-1])
def test_layer_norm_is_torchs(run, rng, shape, eps):
    layer = torch.nn.LayerNorm(16, eps=eps)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = (rng.standard_normal(shape) * 3 + 5).astype(np.float32)

    def build(x):
        factories, graph = LayerNorm().create_graph(x, eps)
        variables = factories.init()
        return graph.bind(variables).call(x)[0], dict(LayerNorm.torch_mapping(variables, layer))

    np.testing.assert_allclose(run(build, x)[0], _torch(layer, x), rtol=1e-5, atol=1e-5)


def test_layer_norm_takes_torchs_weights_of_several_dimensions(main_graph):
    layer = torch.nn.LayerNorm((4, 2))
    torch.nn.init.normal_(layer.weight)
    factories, _ = LayerNorm().create_graph(popxl.TensorSpec((3, 8), popxl.float32))
    variables = factories.init()

    weights = LayerNorm.torch_mapping(variables, layer)

    np.testing.assert_array_equal(
        weights[variables.weight], layer.weight.detach().numpy().reshape(8)
    )


def test_embedding_is_torchs(run, rng):
    table = torch.nn.Embedding(40, 6)
    tokens = rng.integers(0, 40, (2, 5)).astype(np.int32)

    def build(tokens):
        factories, graph = Embedding(popxl.float32, 40, 6).create_graph(tokens)
        variables = factories.init()
        weight = pad_axis(table.weight.detach().numpy(), 48, 0)
        return graph.bind(variables).call(tokens)[0], {variables.weight: weight}

    np.testing.assert_array_equal(run(build, tokens)[0], _torch(table, tokens))


def test_embedding_along_the_second_axis_gives_columns(run, rng):
    weight = rng.standard_normal((6, 16)).astype(np.float32)
    tokens = np.array([3, 0, 15], np.int32)

    def build(tokens):
        factories, graph = Embedding(popxl.float32, 16, 6, axis=1).create_graph(tokens)
        variables = factories.init()
        return graph.bind(variables).call(tokens)[0], {variables.weight: weight}

    np.testing.assert_array_equal(run(build, tokens)[0], weight[:, tokens])
    with pytest.raises(ValueError, match="axis 0 or 1 of an embedding, got 2"):
        Embedding(popxl.float32, 16, 6, axis=2)


@pytest.mark.parametrize(("vocab_size", "replicas"), [(64, 2), (50, 4)])
def test_the_shards_of_an_embedding_add_up_to_it(run, rng, vocab_size, replicas):
    table = rng.standard_normal((vocab_size, 6)).astype(np.float32)
    tokens = np.append(rng.integers(0, vocab_size, 7), [0, vocab_size - 1]).astype(np.int32)
    size = Embedding.get_vocab_shard_size(vocab_size, replicas)
    offsets = Embedding.get_offsets(vocab_size, replicas)

    def build(tokens):
        each = popxl.gir().replica_grouping(group_size=1)
        factories, graph = Embedding(popxl.float32, vocab_size, 6, 0, each).create_graph(tokens)
        variables = factories.init()
        weight = shard(pad_axis(table, size * replicas, 0), replicas, 0)
        part = graph.bind(variables).call(tokens)[0]
        total = ops.collectives.replicated_all_reduce(part)
        return total, {variables.weight: weight}

    shifted = (tokens - offsets[:, None]).astype(np.int32)
    (y,) = run(build, shifted, replicas=replicas)

    assert size % 16 == 0
    assert size * replicas >= vocab_size
    for replica in y:
        np.testing.assert_array_equal(replica, table[tokens])


@pytest.mark.parametrize("dim", [-1, 0, 1])
@pytest.mark.parametrize("group_size", [4, 16])
def test_linear_gq_multiplies_by_its_decompressed_weight(run, rng, dim, group_size):
    layer = torch.nn.Linear(32, 16)
    x = rng.standard_normal((3, 32)).astype(np.float32)

    (y,) = run(
        _layer(LinearGQ(16, group_size=group_size, dim=dim), layer, group_size=group_size, dim=dim),
        x,
    )

    compressed = group_quantize_compress_numpy(layer.weight.detach().numpy().T, group_size, dim)
    packed, scale, bias = compressed
    weight = group_quantize_decompress_numpy(
        packed, scale.astype(np.float32), bias.astype(np.float32), dim
    )
    expected = x @ weight + layer.bias.detach().numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    # 4 bits an element are close to the layer itself, too
    np.testing.assert_allclose(y, _torch(layer, x), atol=0.2)


@pytest.mark.parametrize("group_size", [0, 6])
def test_linear_gq_refuses_groups_that_do_not_fill_words(group_size):
    with pytest.raises(ValueError, match=f"positive multiple of 4, got {group_size}"):
        LinearGQ(16, group_size=group_size)


def test_linear_gq_refuses_groups_that_do_not_divide_the_weight(main_graph):
    with pytest.raises(ValueError, match="group_size 12 does not divide dimension -1.*16"):
        LinearGQ(16, group_size=12).create_graph(popxl.TensorSpec((3, 24), popxl.float32))
    with pytest.raises(ValueError, match="dim is 0, 1 or -1, got 2"):
        LinearGQ(16, group_size=4, dim=2)


# --- over channels and classes ---


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel_size", [3, (3, 2)])
def test_conv_is_torchs(run, rng, kernel_size, bias):
    layer = torch.nn.Conv2d(4, 6, kernel_size, (2, 1), (1, 0), (1, 2), 2, bias)
    module = Conv2D(6, kernel_size, (2, 1), (1, 0, 1, 0), (1, 2), 2, bias)
    x = rng.standard_normal((2, 4, 7, 8)).astype(np.float32)

    (y,) = run(_layer(module, layer), x)

    np.testing.assert_allclose(y, _torch(layer, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("paddings, padding", [("same_upper", 1), ("valid", 0)])
def test_conv_takes_paddings_by_name(run, rng, paddings, padding):
    layer = torch.nn.Conv2d(2, 3, 3, padding=padding)
    x = rng.standard_normal((1, 2, 5, 5)).astype(np.float32)

    (y,) = run(_layer(Conv2D(3, 3, paddings=paddings), layer), x)

    np.testing.assert_allclose(y, _torch(layer, x), rtol=1e-5, atol=1e-6)


def test_conv_with_its_output_channels_on_two_replicas_gives_both_halves(run, rng):
    x = rng.standard_normal((1, 4, 5, 5)).astype(np.float32)
    weight = rng.standard_normal((6, 4, 3, 3)).astype(np.float32)

    def build(x):
        each = popxl.gir().replica_grouping(group_size=1)
        factories, graph = Conv2D(3, 3, bias=False, replica_grouping=each).create_graph(x)
        variables = factories.init()
        return graph.bind(variables).call(x)[0], {variables.weight: weight.reshape(2, 3, 4, 3, 3)}

    (y,) = run(build, np.stack([x, x]), replicas=2)

    expected = torch.conv2d(torch.from_numpy(x), torch.from_numpy(weight))
    np.testing.assert_allclose(np.concatenate(y, axis=1), expected, rtol=1e-5, atol=1e-5)


def test_conv_of_another_rank_is_refused(main_graph):
    with pytest.raises(ValueError, match=r"Conv2D: .*\(batch, channels, height, width\).*\(2, 3\)"):
        Conv2D(3, 3).create_graph(popxl.TensorSpec((2, 3), popxl.float32))


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 5), (2, 6, 3, 4)])
def test_group_norm_is_torchs(run, rng, shape):
    layer = torch.nn.GroupNorm(2, 6, eps=1e-3)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = (rng.standard_normal(shape) * 3 + 5).astype(np.float32)

    (y,) = run(_layer(GroupNorm(2, eps=1e-3), layer), x)

    np.testing.assert_allclose(y, _torch(layer, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [None, 3])
def test_cross_entropy_and_its_gradient_are_torchs(run, rng, ignore_index, reduction):
    logits = rng.standard_normal((2, 4, 7)).astype(np.float32)
    labels = rng.integers(0, 7, (2, 4)).astype(np.int32)
    labels[0, 0] = 3

    def build(x, labels):
        alone = addons.cross_entropy(x, labels, ignore_index, reduction)
        return alone, *addons.cross_entropy_with_grad(x, labels, 64, ignore_index, reduction)

    alone, loss, gradient = run(build, logits, labels)

    x = torch.from_numpy(logits).requires_grad_()
    expected = torch.nn.functional.cross_entropy(
        x.flatten(0, 1),
        torch.from_numpy(labels).long().flatten(),
        ignore_index=-100 if ignore_index is None else ignore_index,
        reduction=reduction,
    )
    expected.sum().backward()
    for got in (alone, loss):
        np.testing.assert_allclose(got.ravel(), expected.detach().numpy().ravel(), rtol=1e-4)
    np.testing.assert_allclose(gradient, x.grad * 64, rtol=1e-4, atol=1e-4)


def test_losses_are_found_where_programs_look_for_them():
    assert addons.ops.cross_entropy_with_grad is addons.cross_entropy_with_grad
    assert addons.ops.cross_entropy is addons.cross_entropy
