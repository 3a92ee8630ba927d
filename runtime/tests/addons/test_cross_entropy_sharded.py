"""Cross entropy of classes that replicas, or the IPUs of one, have between them: against torch."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
import torch
from popxl_addons.ops.cross_entropy_sharded_loss import cross_entropy_sharded_loss
from popxl_addons.ops.cross_entropy_sharded_wr_loss import cross_entropy_sharded_wr_loss

SAMPLES, CLASSES = 9, 12


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("ignored", [None, 0, 7])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("stride", "size"), [(1, 4), (2, 2)])
def test_the_loss_is_that_of_all_classes(run, rng, stride, size, reduction, ignored, dtype):
    logits = (8 * rng.normal(size=(4 // size, SAMPLES, CLASSES))).astype(dtype)
    labels = rng.integers(0, CLASSES, SAMPLES).astype(np.int32)
    labels[:2] = 0, 7
    # [replicas, samples, classes of one]: groups of every stride-th replica
    parts = np.stack(np.split(logits, size, axis=2))
    parts = parts.reshape(4, SAMPLES, -1)
    member = np.arange(4) // stride
    first = (member * (CLASSES // size)).astype(np.int32)

    def build(x, indices, first):
        group = popxl.gir().replica_grouping(stride, size)
        ignore = None if ignored is None else popxl.constant(ignored, popxl.int32) - first
        return cross_entropy_sharded_loss(x, indices, ignore, group, reduction)

    (loss,) = run(build, parts, labels - first[:, None], first, replicas=4)

    for replica in range(4):
        expected = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits[replica % stride].astype(np.float32)),
            torch.from_numpy(labels.astype(np.int64)),
            ignore_index=-100 if ignored is None else ignored,
            reduction=reduction,
        )
        tolerance = 1e-5 if dtype == np.float32 else 2e-2
        np.testing.assert_allclose(loss[replica], expected, rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(loss[replica], loss[replica % stride])


@pytest.mark.parametrize(
    ("shape", "reduction", "message"),
    [
        ((3, 4), "max", "reduction 'max'"),
        ((2, 3, 4), "mean", "logits must be"),
        ((2, 4), "mean", "indices"),
    ],
)
def test_what_it_does_not_take(main_graph, shape, reduction, message):
    logits = popxl.constant(np.zeros(shape, np.float32))
    indices = popxl.constant(np.zeros(3, np.int32))
    with pytest.raises(ValueError, match=message):
        cross_entropy_sharded_loss(logits, indices, reduction=reduction)


def test_the_classes_of_one_replica_in_unequal_parts(run, rng):
    logits = rng.normal(size=(SAMPLES, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, SAMPLES).astype(np.int32)
    parts = [np.ascontiguousarray(p) for p in np.split(logits, [5, 7], axis=1)]

    def build(labels, *parts):
        return cross_entropy_sharded_wr_loss(list(parts), [labels] * 3, ipus=[0, 1, 2])

    (loss,) = run(build, labels, *parts)

    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels.astype(np.int64)), reduction="none"
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
