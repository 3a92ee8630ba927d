"""Cross entropy of logits and labels: softmax, then the negative log likelihood."""

from __future__ import annotations

import popxl
from popxl import ops
from popxl.ops.negative_log_likelihood import REDUCTION_TYPE


def cross_entropy(
    x: popxl.Tensor,
    labels: popxl.Tensor,
    ignore_index: int | None = None,
    reduction: REDUCTION_TYPE = "mean",
) -> popxl.Tensor:
    """The cross entropy of `x`, logits `(..., classes)`, and `labels`, integers `(...)`.

    Args:
        ignore_index: the label whose items lose nothing and are not counted in the mean.
        reduction: "mean" or "sum" over the items, or "none": a loss for each.
    """
    return ops.nll_loss(ops.softmax(x, axis=-1), labels, ignore_index, reduction)


def cross_entropy_with_grad(
    x: popxl.Tensor,
    labels: popxl.Tensor,
    loss_scaling: float | popxl.Tensor = 1,
    ignore_index: int | None = None,
    reduction: REDUCTION_TYPE = "mean",
) -> tuple[popxl.Tensor, popxl.Tensor]:
    """`cross_entropy`, and its gradient with respect to `x` times `loss_scaling`.

    Args:
        loss_scaling: a number or a scalar tensor; does not scale the loss. It keeps gradients in
            the range of float16.
    """
    probs = ops.softmax(x, axis=-1)
    return ops.nll_loss_with_softmax_grad(probs, labels, loss_scaling, ignore_index, reduction)
