"""Cross entropy of logits whose classes are spread over the IPUs of one replica."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import popxl
from popxl import ops


def cross_entropy_sharded_wr_loss(
    logits: Sequence[popxl.Tensor],
    indices: Sequence[popxl.Tensor],
    ipus: Iterable[int] | None = None,
) -> popxl.Tensor:
    """The cross entropy of each sample, `(samples,)`.

    Args:
        logits: `(samples, some of the classes)`, the first classes first.
        indices: `(samples,)`, the class of each sample among all, once for each of `logits`.
        ipus: where each of them is; without effect here.

    Raises:
        ValueError: where there are not as many indices as logits.
    """
    if len(logits) != len(indices):
        raise ValueError(f"{len(logits)} logits and {len(indices)} indices: they must be as many")
    every = ops.concat(list(logits), axis=1)
    less = every - ops.max(every, 1, keepdims=True)
    own = ops.equal(
        indices[0].reshape((-1, 1)), popxl.constant(range(every.shape[1]), indices[0].dtype)
    )
    of_class = ops.sum(ops.where(own, less, 0.0), 1)
    return ops.log(ops.sum(ops.exp(less), 1)) - of_class
