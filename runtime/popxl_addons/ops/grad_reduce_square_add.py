"""The squared norm of a scaled tensor."""

from __future__ import annotations

import popxl
from popxl import ops


def grad_reduce_square_add(t: popxl.Tensor, loss_scaling: float | popxl.Tensor) -> popxl.Tensor:
    """The sum of `(t / loss_scaling)^2` over all elements, a float32 scalar."""
    total = ops.sumsquare(ops.cast(t, popxl.float32))
    if isinstance(loss_scaling, popxl.Tensor):
        loss_scaling = ops.cast(loss_scaling, popxl.float32)
    return total * (1 / (loss_scaling * loss_scaling))
