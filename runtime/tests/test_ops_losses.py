"""Losses and their gradients, against torch in float64."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from popxl import ops
from programs import (
    FLOATS,
    LAYOUTS,
    assert_rounded,
    by_replica,
    in_turn,
    numbers,
    run_on_layout,
    run_program,
)

REDUCTIONS = ["mean", "sum", "none"]
SHAPES = [(6, 5), (2, 3, 4), (5,)]
IGNORED = 1


def loss_and_gradient(reduction: str, ignore: int | None, scale: float):
    """The cross entropy of logits, and its gradient times `scale`."""

    def reference(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = torch.from_numpy(logits.astype(np.float64)).requires_grad_()
        flat = x.reshape(-1, x.shape[-1])
        target = torch.from_numpy(labels.astype(np.int64)).reshape(-1)
        left_out = -100 if ignore is None else ignore
        loss = F.cross_entropy(flat, target, ignore_index=left_out, reduction=reduction)
        loss.sum().backward()
        shape = labels.shape if reduction == "none" else ()
        return loss.detach().numpy().reshape(shape), x.grad.numpy() * scale

    return reference


@in_turn("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore", [None, IGNORED])
def test_loss_and_gradient(ignore, reduction, dtype, layout, rng):
    for shape in SHAPES:
        logits = numbers(rng, shape, dtype, -1, 1)  # 1e-7 changes little
        labels = numbers(rng, shape[:-1], popxl.int32, 0, shape[-1])
        labels = [np.where(np.arange(v.size).reshape(v.shape) == 0, 2, v) for v in labels]

        def build(logits, labels):
            wide = ops.cast(logits, popxl.float32)
            probs = ops.softmax(wide, -1)
            return (
                ops.nll_loss(probs, labels, ignore, reduction),
                *ops.nll_loss_with_softmax_grad(probs, labels, 64, ignore, reduction),
            )

        alone, loss, gradient = run_on_layout(layout, build, logits, labels)
        reference = loss_and_gradient(reduction, ignore, 64)
        for got, which in ((alone, 0), (loss, 0), (gradient, 1)):
            expected = by_replica(
                layout, lambda *a, f=reference, i=which: f(*a)[i], [logits, labels]
            )
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_results_are_of_the_type_of_the_probabilities(dtype, rng):
    probs = numbers(rng, (4, 3), dtype, 0.1, 0.5)[0]
    labels = np.array([0, 1, 2, 0], np.uint32)
    loss, other, gradient = run_program(
        lambda probs, at: (
            ops.nll_loss(probs, at),
            *ops.nll_loss_with_softmax_grad(probs, at, 2.0),
        ),
        *(probs, labels),
    )
    wide = probs.astype(np.float64)
    expected = -np.log(wide[np.arange(4), labels]).mean()
    assert_rounded(loss, expected, dtype, 4)
    assert_rounded(other, expected, dtype, 4)
    assert_rounded(gradient, (wide - np.eye(3)[labels]) / 2, dtype, 1)


@pytest.mark.parametrize("labels_type", [popxl.int32, popxl.uint32, popxl.uint16, popxl.int8])
def test_labels_of_any_integers(labels_type):
    probs = np.eye(4, dtype=np.float32)[None] * 0.5
    labels = np.array([[0, 1, 2, 3]], labels_type.as_numpy())
    (loss,) = run_program(
        lambda probs, at: ops.nll_loss(probs, at, reduction="none"), probs, labels
    )
    np.testing.assert_allclose(loss, np.full((1, 4), np.log(2)), rtol=1e-6)


def test_logarithms_of_probabilities(rng):
    probs = numbers(rng, (4, 3), popxl.float32, 0.1, 0.5)[0]
    labels = np.array([0, 1, 2, 0], np.int32)
    plain, logs = run_program(
        lambda probs, at: (
            ops.nll_loss(probs, at),
            ops.nll_loss(ops.log(probs), at, log_prob=True),
        ),
        *(probs, labels),
    )
    np.testing.assert_allclose(plain, logs, rtol=1e-6)


@pytest.mark.parametrize("dtype, least", [(popxl.float32, 1e-7), (popxl.float16, 6.104e-5)])
def test_impossible_labels_lose_a_finite_amount(dtype, least):
    """A probability of 0, and labels that are no class."""
    probs = np.array([[0, 1], [1, 0], [1, 0]], dtype.as_numpy())
    labels = np.array([0, 2, -1], np.int32)
    (loss,) = run_program(
        lambda probs, at: ops.nll_loss(probs, at, reduction="none"), probs, labels
    )
    np.testing.assert_allclose(loss.astype(np.float32), np.full(3, -np.log(least)), rtol=1e-3)


def test_where_all_items_are_ignored_the_mean_is_0(rng):
    probs = numbers(rng, (2, 3), popxl.float32, 0.1, 0.5)[0]
    labels = np.ones(2, np.int32)
    for got in run_program(
        lambda probs, at: (
            ops.nll_loss(probs, at, 1),
            *ops.nll_loss_with_softmax_grad(probs, at, 1, 1),
        ),
        *(probs, labels),
    ):
        np.testing.assert_array_equal(got, np.zeros_like(got))


@in_turn("layout", LAYOUTS)
def test_the_gradient_of_what_follows_is_a_factor(layout, rng):
    logits, labels = numbers(rng, (3, 4), popxl.float32), numbers(rng, (3,), popxl.int32, 0, 4)
    scalar, each = numbers(rng, (), popxl.float32), numbers(rng, (3,), popxl.float32)

    def build(logits, labels, scalar, each):
        probs = ops.softmax(logits, -1)
        return (
            ops.nll_loss_with_softmax_grad(probs, labels, scalar)[1],
            ops.nll_loss_with_softmax_grad(probs, labels, scalar.reshape((1,)))[1],
            ops.nll_loss_with_softmax_grad(probs, labels, each, reduction="none")[1],
        )

    one, same, many = run_on_layout(layout, build, logits, labels, scalar, each)

    def reference(reduction):
        def gradient(logits, labels, scalar, each):
            plain = loss_and_gradient(reduction, None, 1)(logits, labels)[1]
            return plain * (scalar if reduction == "mean" else each[:, None])

        return by_replica(layout, gradient, [logits, labels, scalar, each])

    np.testing.assert_allclose(one, reference("mean"), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(one, same)
    np.testing.assert_allclose(many, reference("none"), rtol=1e-5, atol=1e-6)


REFUSED = {
    "reduction": (
        lambda t: ops.nll_loss(t.x, t.index, reduction="foo"),
        ValueError,
        "nll_loss: reduction must be one of mean, sum, none, got 'foo'",
    ),
    "reduction with gradient": (
        lambda t: ops.nll_loss_with_softmax_grad(t.x, t.index, reduction="foo"),
        ValueError,
        "nll_loss_with_softmax_grad: reduction must be one of mean, sum, none, got 'foo'",
    ),
    "labels": (
        lambda t: ops.nll_loss(t.y, t.index),
        ValueError,
        r"nll_loss: labels must be of the shape of y \(3, 4\) but for the last axis, .*\(2,\)",
    ),
    "float labels": (
        lambda t: ops.nll_loss(t.x, t.row),
        TypeError,
        "nll_loss: labels row must hold integers, got float32",
    ),
    "loss_grad": (
        lambda t: ops.nll_loss_with_softmax_grad(t.x, t.index, t.row),
        ValueError,
        r"loss_grad must be of shape \(\), got \(3,\)",
    ),
    "loss_grad dtype": (
        lambda t: ops.nll_loss_with_softmax_grad(t.x, t.index, t.index),
        TypeError,
        "loss_grad index must be float32",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_while_the_program_is_built(case, things):
    build, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        build(things)
