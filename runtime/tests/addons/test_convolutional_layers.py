"""Layers and losses over channels and classes, against those of torch."""

import numpy as np
import popxl
import popxl_addons as addons
import pytest
import torch
from popxl_addons.layers import Conv2D, GroupNorm


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def _layer(module, torch_layer):
    """A program of one layer with the weights of a torch layer."""

    def build(x):
        factories, graph = module.create_graph(x)
        variables = factories.init()
        weights = type(module).torch_mapping(variables, torch_layer, x.dtype)
        return graph.bind(variables).call(x)[0], dict(weights)

    return build


def _torch(layer, x):
    with torch.no_grad():
        return layer(torch.from_numpy(x)).numpy()


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
