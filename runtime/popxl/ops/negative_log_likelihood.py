"""Losses: the negative log of what a model gives to the right class."""

from __future__ import annotations

from typing import Literal, get_args

from popxl import dtypes
from popxl.ops._build import emit, emit_one, need_float, need_int, need_one_of, tensor_operand
from popxl.ops.shape import reshape
from popxl.tensor import Tensor, TensorSpec, constant

REDUCTION_TYPE = Literal["mean", "sum", "none"]


def nll_loss(
    probs: Tensor,
    labels: Tensor,
    ignore_index: int | None = None,
    reduction: REDUCTION_TYPE = "mean",
    log_prob: bool = False,
) -> Tensor:
    """`-log(probs[label])`, of probabilities that are 1e-7 at the least (6.104e-5 in float16).

    Args:
        probs: `(..., classes)`, as `softmax` gives them.
        labels: `(...)` integers; one that is no class counts as a probability of 0.
        ignore_index: the label whose items lose nothing and are not counted in the mean.
        reduction: "mean" or "sum" over the items, or "none": a loss for each.
        log_prob: `probs` holds logarithms.

    Returns:
        Of the dtype of `probs`: a scalar, or of the shape of `labels` for "none".

    Raises:
        TypeError: where `probs` does not hold floats, or `labels` integers.
        ValueError: where shapes do not fit or there is no such reduction.
    """
    shape = _check("nll_loss", probs, labels, reduction)
    return emit_one(
        "nll_loss",
        [probs, labels],
        TensorSpec(shape, probs.dtype),
        ignore=ignore_index,
        reduction=reduction,
        log_prob=bool(log_prob),
    )


def nll_loss_with_softmax_grad(
    probs: Tensor,
    labels: Tensor,
    loss_grad: float | Tensor = 1,
    ignore_index: int | None = None,
    reduction: REDUCTION_TYPE = "mean",
) -> tuple[Tensor, Tensor]:
    """The loss of `probs = softmax(x)`, and `loss_grad` times its gradient with respect to `x`.

    Args:
        probs, labels, ignore_index, reduction: as for `nll_loss`; 1e-7 is added to probabilities.
        loss_grad: a number, or a tensor of float32 or the dtype of `probs`: one element, or
            for "none" the shape of `labels`.

    Returns:
        The loss, as `nll_loss` returns it, and the gradient, like `probs`: `probs` less 1 at the
        label, over the number of items that count for "mean".

    Raises:
        TypeError: where dtypes do not fit.
        ValueError: where shapes do not fit or there is no such reduction.
    """
    kind = "nll_loss_with_softmax_grad"
    shape = _check(kind, probs, labels, reduction)
    grad = loss_grad if isinstance(loss_grad, Tensor) else constant(loss_grad, dtypes.float32)
    if grad.dtype not in (dtypes.float32, probs.dtype):
        raise TypeError(f"{kind}: loss_grad {grad.name} must be float32 or {probs.dtype}")
    if grad.shape != shape and grad.nelms == 1:
        grad = reshape(grad, ())
    if grad.shape not in ((), shape):
        raise ValueError(f"{kind}: loss_grad must be of shape {shape}, got {grad.shape}")
    loss, gradient = emit(
        kind,
        [probs, labels, grad],
        [TensorSpec(shape, probs.dtype), probs.spec],
        ignore=ignore_index,
        reduction=reduction,
    )
    return loss, gradient


def _check(kind: str, probs: Tensor, labels: Tensor, reduction: str) -> tuple[int, ...]:
    """The shape of the loss, where the arguments fit."""
    need_float(kind, tensor_operand(kind, probs))
    need_int(kind, tensor_operand(kind, labels), "labels")
    need_one_of(kind, "reduction", reduction, get_args(REDUCTION_TYPE))
    if not probs.rank or labels.shape != probs.shape[:-1]:
        raise ValueError(
            f"{kind}: labels must be of the shape of {probs.name} {probs.shape} but for the last "
            f"axis, {labels.name} is {labels.shape}"
        )
    return labels.shape if reduction == "none" else ()
