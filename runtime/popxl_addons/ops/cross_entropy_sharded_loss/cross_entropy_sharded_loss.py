"""Cross entropy of logits whose classes are spread over replicas (tensor parallelism)."""

from __future__ import annotations

import popxl
from popxl import ops
from popxl.ops import collectives

REDUCTIONS = ("mean", "sum", "none")


def cross_entropy_sharded_loss(
    logits: popxl.Tensor,
    indices: popxl.Tensor,
    ignore_index: popxl.Tensor | None = None,
    replica_grouping: popxl.ReplicaGrouping | None = None,
    reduction: str = "mean",
    available_memory_proportion: float = 0.4,
) -> popxl.Tensor:
    """The cross entropy of samples, the same on all replicas of a group.

    The largest logit is subtracted before exponents are taken, so that nothing overflows.

    Args:
        logits: `(samples, classes of this replica)`.
        indices: `(samples,)`, the classes of the samples, counted from this replica's first one:
            below 0, or not below the number of its classes, where another replica has it.
        ignore_index: the index of samples that do not count, adjusted as `indices` are.
        replica_grouping: the replicas that have all classes between them; all where None.
        reduction: "mean", "sum" or "none", which gives `(samples,)`.
        available_memory_proportion: without effect here.

    Raises:
        ValueError: for other shapes, or another reduction.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction {reduction!r}: allowed are {', '.join(REDUCTIONS)}")
    if logits.rank != 2 or indices.shape != logits.shape[:1]:
        raise ValueError(
            "cross_entropy_sharded_loss: logits must be (samples, classes) and indices "
            f"(samples,), got {logits.shape} and {indices.shape}"
        )
    log_sum, of_class = _over_classes(logits, indices, replica_grouping)
    loss = log_sum - of_class
    if ignore_index is None:
        return _reduced(loss, None, reduction)
    counts = ops.cast(ops.logical_not(ops.equal(indices, ignore_index)), loss.dtype)
    return _reduced(loss * counts, counts, reduction)


def _over_classes(
    logits: popxl.Tensor, indices: popxl.Tensor, group: popxl.ReplicaGrouping | None
) -> tuple[popxl.Tensor, popxl.Tensor]:
    """Of all replicas of a group: `log(sum(exp(logits)))` and the logit of each sample's class.

    Both less the largest logit, `(samples,)`.
    """
    classes = popxl.constant(range(logits.shape[1]), indices.dtype)
    largest = collectives.replicated_all_reduce(ops.max(logits, 1, keepdims=True), "max", group)
    less = logits - largest
    total = collectives.replicated_all_reduce(ops.sum(ops.exp(less), 1), "add", group)
    # An index of another replica's class equals none of these.
    own = ops.equal(indices.reshape((-1, 1)), classes)
    of_class = ops.sum(ops.where(own, less, 0.0), 1)
    return ops.log(total), collectives.replicated_all_reduce(of_class, "add", group)


def _reduced(loss: popxl.Tensor, counts: popxl.Tensor | None, reduction: str) -> popxl.Tensor:
    if reduction == "mean":
        return ops.mean(loss) if counts is None else ops.sum(loss) / ops.sum(counts)
    return ops.sum(loss) if reduction == "sum" else loss
