"""Products of several replicas by the GPU's kernels, whatever axes their tensors differ along."""

from __future__ import annotations

import numpy as np
import popxl
import programs
import pytest
from popxl import ops
from popxl_torch.backends import chosen
from popxl_torch.backends import cuda as gpu
from programs import by_replica, numbers, run_on_layout
from triton_here import DEVICE, kernels

MORE_LAYOUTS = {
    "weights of one axis, inputs of the other": [[0, 1, 0, 1], [0, 0, 1, 1], [0] * 4, [0] * 4],
    "biases of another axis than weights": [[0] * 4, [0, 0, 1, 1], [0, 1, 0, 1], [0] * 4],
    "what is added differs alone": [[0] * 4, [0] * 4, [0] * 4, [0, 1, 2, 3]],
    "weights differ alone": [[0] * 4, [0, 1, 2, 3], [0] * 4, [0] * 4],
}

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="a GPU runs no interpreter")


@pytest.fixture
def called(monkeypatch) -> list[int]:
    """Lets sessions on the CPU use the kernels; the replicas of the products they do."""
    replicas: list[int] = []
    linear = kernels.linear

    def watched(x, *args):
        done = linear(x, *args)
        replicas.extend([len(x)] * (done is not None))
        return done

    monkeypatch.setattr(kernels, "linear", watched)
    monkeypatch.setattr(gpu, "kernels_for", lambda device: kernels)
    monkeypatch.setattr(chosen, "library", lambda: None)
    return replicas


def build(x, weight, bias, residual):
    return ops.gelu(x @ ops.transpose(weight) + bias) + residual


def reference(x, weight, bias, residual):
    return followed(x @ weight.T, bias, residual)


def followed(y, bias, residual):
    y = y + bias
    return y / (1 + np.exp(-2 * 0.7978845608 * (y + 0.044715 * y**3))) + residual


@pytest.mark.parametrize("layout", [*programs.LAYOUTS, *MORE_LAYOUTS])
@pytest.mark.parametrize("rows", [1, 3])
def test_products_and_what_follows(monkeypatch, rng, called, layout, rows):
    monkeypatch.setattr(programs, "LAYOUTS", programs.LAYOUTS | MORE_LAYOUTS)
    shapes = ((rows, 40), (12, 40), (12,), (rows, 12))
    values = [numbers(rng, shape, popxl.float32, -0.4, 0.4) for shape in shapes]
    (found,) = run_on_layout(layout, build, *values)
    np.testing.assert_allclose(found, by_replica(layout, reference, values), atol=1e-5)
    weights = len(set(programs.LAYOUTS[layout][1]))
    assert called == [weights]  # each is read once


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", ["all replicas differ", "what is added differs alone"])
def test_a_sum_over_replicas_and_what_follows(monkeypatch, rng, called, layout, stride):
    """Of replicas in twos, in whose mesh the inputs and what is added may differ."""
    finished, finish = [], kernels.finish
    monkeypatch.setattr(kernels, "finish", lambda *a: finished.append(0) or finish(*a))
    monkeypatch.setattr(programs, "LAYOUTS", programs.LAYOUTS | MORE_LAYOUTS)
    shapes = ((3, 40), (12, 40), (12,), (3, 12))
    values = [numbers(rng, shape, popxl.float32, -0.4, 0.4) for shape in shapes]

    def build(x, weight, bias, residual):
        group = popxl.gcg().ir.replica_grouping(stride=stride, group_size=2)
        y = ops.collectives.replicated_all_reduce(x @ ops.transpose(weight), "add", group)
        return ops.gelu(y + bias) + residual

    (found,) = run_on_layout(layout, build, *values)
    products = by_replica(layout, lambda x, weight, *_: x @ weight.T, values)
    partners = products[np.arange(4) ^ stride]
    added = [by_replica(layout, lambda *all, i=i: all[i], values) for i in (2, 3)]
    expected = followed(products + partners, added[0][:, None], added[1])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(finished) == (len(set(programs.LAYOUTS[layout][1])) > 1)
