"""Products of several replicas by the GPU's kernels, whatever axes their tensors differ along."""

from __future__ import annotations

import numpy as np
import popxl
import programs
import pytest
from popxl import ops
from popxl.backend import engine, gpu
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
    monkeypatch.setattr(engine, "library", lambda: None)
    return replicas


def build(x, weight, bias, residual):
    return ops.gelu(x @ ops.transpose(weight) + bias) + residual


def reference(x, weight, bias, residual):
    y = x @ weight.T + bias
    return y / (1 + np.exp(-2 * 0.7978845608 * (y + 0.044715 * y**3))) + residual


@pytest.mark.parametrize("layout", [*programs.LAYOUTS, *MORE_LAYOUTS])
@pytest.mark.parametrize("rows", [1, 3])
def test_products_and_what_follows(monkeypatch, rng, called, layout, rows):
    monkeypatch.setattr(programs, "LAYOUTS", programs.LAYOUTS | MORE_LAYOUTS)
    shapes = ((rows, 40), (12, 40), (12,), (rows, 12))
    values = [numbers(rng, shape, popxl.float32, -1, 1) for shape in shapes]
    (found,) = run_on_layout(layout, build, *values)
    np.testing.assert_allclose(found, by_replica(layout, reference, values), atol=1e-5)
    weights = len(set(programs.LAYOUTS[layout][1]))
    assert called == [weights]  # each is read once
