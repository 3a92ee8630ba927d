"""Layer norm over a dimension that several replicas hold together."""

from __future__ import annotations

import popxl
from popxl import ops

from ..composite import composite


def layer_norm_distributed(
    t: popxl.Tensor,
    w: popxl.Tensor,
    b: popxl.Tensor,
    epsilon: float = 1e-05,
    group: popxl.ReplicaGrouping | None = None,
) -> popxl.Tensor:
    """Layer norm (arXiv 1607.06450) of the last dimension, whose parts the members of a group hold.

    Mean and variance are taken in float32, the variance from centred values. One collective: every
    replica gives the mean of its part and the squares round that, which add up to the whole's as
    Chan, Golub and LeVeque have it (Updating formulae and a pairwise algorithm, 1979).

    Args:
        t: `(..., hidden_size / group size)`.
        w, b: scale and shift, `(hidden_size / group size,)` each.
        epsilon: added to the variance.
        group: the replicas that hold the parts of one dimension; all where None.

    Returns:
        Shape and dtype of `t`.

    Raises:
        ValueError: where `w` or `b` do not fit `t`.
    """
    part = tuple(t.shape[-1:])
    for name, parameter in (("w", w), ("b", b)):
        if not part or tuple(parameter.shape) != part or parameter.dtype != t.dtype:
            raise ValueError(
                f"layer_norm_distributed: {name} must be {t.dtype} {part} like the last dimension "
                f"of t, got {parameter.dtype} {tuple(parameter.shape)}"
            )
    group = group or popxl.gir().replica_grouping()
    return _composite(t, w, b, float(epsilon), tuple(group.assignment))


def _build(
    t: popxl.Tensor,
    w: popxl.Tensor,
    b: popxl.Tensor,
    epsilon: float,
    assignment: tuple[int, ...],
) -> popxl.Tensor:
    group = popxl.gir().replica_grouping_from_assignments(list(assignment))
    hidden_size = t.shape[-1] * group.group_size
    x = ops.cast(t, popxl.float32)
    mean = ops.mean(x, -1, True)
    centred = x - mean
    squares = ops.sumsquare(centred, -1, True)
    if group.group_size > 1:
        shift, squares = _of_whole(mean, squares, t.shape[-1], group)
        centred = centred + shift
    normalised = centred / ops.sqrt(squares / hidden_size + epsilon)
    scaled = normalised * ops.cast(w, popxl.float32) + ops.cast(b, popxl.float32)
    return ops.cast(scaled, t.dtype)


def _of_whole(
    mean: popxl.Tensor, squares: popxl.Tensor, size: int, group: popxl.ReplicaGrouping
) -> tuple[popxl.Tensor, popxl.Tensor]:
    """From mean and squares round it of each part of `size` elements, `(..., 1)`, to the whole's.

    Returns:
        What lies between this part's mean and the whole's, and the squares round the latter.
    """
    own = ops.concat([mean, squares], -1)
    every = ops.collectives.replicated_all_gather(own, 0, group, "new_axis")
    means, parts = ops.split(every, 2, axis=-1)
    whole = ops.mean(means, 0)
    between = ops.sumsquare(means - whole, 0) * size
    return mean - whole, ops.sum(parts, 0) + between


_composite = composite("layer_norm_distributed", _build)
