"""A small network over images in whole programs: run again and again, in loops, on replicas."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from popxl import ops
from programs import run_program, store

RUNS = 5
"""Enough for a graph to be run as it is, recorded, and run from the recording."""


def network(x, weight, scale, labels):
    """Ops over `(batch, 4, 8, 8)` that keep the shape, and a loss."""
    y = ops.conv(x, weight, padding=(1, 1, 1, 1))
    y = ops.layer_norm(y, scale, scale)
    y = ops.max_pool(y, (2, 2), (2, 2))
    y = ops.interpolate(y, (1, 1, 2, 2), "linear")
    y = ops.average_pool(y, (3, 3), padding=(1, 1, 1, 1))
    logits = ops.mean(y, (2, 3))
    return y, ops.nll_loss(ops.softmax(logits, -1), labels)


def expected(x, weight, scale, labels):
    x, weight, scale = (torch.from_numpy(a) for a in (x, weight, scale))
    y = F.conv2d(x, weight, padding=1)
    y = F.group_norm(y, 1, scale, scale)
    y = F.interpolate(F.max_pool2d(y, 2), scale_factor=2, mode="bilinear")
    y = F.avg_pool2d(y, 3, 1, 1, count_include_pad=False)
    return y.numpy(), F.cross_entropy(y.mean((2, 3)), torch.from_numpy(labels).long()).numpy()


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("replicas", [1, 2])
def test_every_run_computes_with_its_own_numbers(replicas, kernels, rng):
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph:
        x = popxl.h2d_stream((2, 4, 8, 8), popxl.float32)
        labels = popxl.h2d_stream((2,), popxl.int32)
        weights = rng.standard_normal((replicas, 4, 4, 3, 3)).astype(np.float32)
        own = ir.replica_grouping(group_size=1)
        weight = popxl.variable(weights if replicas > 1 else weights[0], replica_grouping=own)
        scale = popxl.variable(np.arange(1, 5, dtype=np.float32))
        given = [ops.host_load(x), weight, scale, ops.host_load(labels)]
        made = ops.call(ir.create_graph(network, *given), *given)
        outputs = store(made)
    with popxl.Session(ir, "cpu", composite_kernels=kernels) as session:
        for _ in range(RUNS):
            images = rng.standard_normal((replicas, 2, 4, 8, 8)).astype(np.float32)
            classes = rng.integers(0, 4, (replicas, 2)).astype(np.int32)
            inputs = (images, classes) if replicas > 1 else (images[0], classes[0])
            results = session.run(dict(zip((x, labels), inputs, strict=True)))
            for i, stream in enumerate(outputs):
                want = [
                    expected(image, w, np.arange(1, 5, dtype=np.float32), c)[i]
                    for image, w, c in zip(images, weights, classes, strict=True)
                ]
                got = results[stream] if replicas > 1 else results[stream][None]
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_loop_feeds_a_network_its_own_result(rng):
    """The weight of a loop is the same in every round; the input is not."""
    images = rng.standard_normal((1, 3, 6, 6)).astype(np.float32)
    weight = rng.standard_normal((3, 3, 3, 3)).astype(np.float32) / 5

    def round_(x, weight):
        return ops.max_pool(ops.conv(x, weight, padding=(1, 1, 1, 1)), (3, 3), padding=(1, 1, 1, 1))

    ir = popxl.Ir()
    with ir.main_graph:
        x, w = popxl.variable(images), popxl.variable(weight)
        (stream,) = store(ops.repeat(ir.create_graph(round_, x, w), 3, x, w))
    y, kernel = torch.from_numpy(images), torch.from_numpy(weight)
    for _ in range(3):
        y = F.max_pool2d(F.conv2d(y, kernel, padding=1), 3, 1, 1)
    with popxl.Session(ir, "cpu") as session:
        for _ in range(RUNS):
            np.testing.assert_allclose(session.run()[stream], y.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_batch_of_nothing_has_the_shapes_of_any(replicas):
    lead = (replicas,) if replicas > 1 else ()
    images = np.zeros((*lead, 0, 4, 8, 8), np.float32)
    weights = np.arange(replicas * 4 * 4 * 9, dtype=np.float32).reshape(*lead, 4, 4, 3, 3)
    scales = np.arange(replicas * 4, dtype=np.float32).reshape(*lead, 4)

    def build(x, w, s):
        y = ops.group_norm(ops.conv_transpose(x, w), s, s, 2)
        return ops.average_pool(ops.conv(y, w), (2, 2)), ops.layer_norm(y, s, s)

    pooled, normed = run_program(build, images, weights, scales, replicas=replicas)
    assert pooled.shape == (*lead, 0, 4, 7, 7)
    assert normed.shape == (*lead, 0, 4, 10, 10)
