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
    replica gives the sum of its part and the squares round its mean, which add up to the whole's as
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
    x = ops.cast(t, popxl.float32)
    own = ops.sum(x, -1, True)
    squares = ops.sumsquare(x - own / t.shape[-1], -1, True)
    if group.group_size == 1:
        mean, variance = own / t.shape[-1], squares / t.shape[-1]
    else:
        mean, variance = _of_whole(own, squares, t.shape[-1], group)
    normalised = (x - mean) / ops.sqrt(variance + epsilon)
    scaled = normalised * ops.cast(w, popxl.float32) + ops.cast(b, popxl.float32)
    return ops.cast(scaled, t.dtype)


def _of_whole(
    own: popxl.Tensor, squares: popxl.Tensor, size: int, group: popxl.ReplicaGrouping
) -> tuple[popxl.Tensor, popxl.Tensor]:
    """Mean and variance of the whole, `(..., 1)`.

    Args:
        own: the sum of this part, of `size` elements.
        squares: round this part's mean, added up.
    """
    both = ops.concat([own, squares], -1)
    every = ops.collectives.replicated_all_gather(both, 0, group, "new_axis")
    sums, parts = ops.split(every, 2, axis=-1)
    hidden_size = size * group.group_size
    mean = ops.sum(sums, 0) / hidden_size
    between = ops.sumsquare(sums / size - mean, 0) * size
    return mean, (ops.sum(parts, 0) + between) / hidden_size


_composite = composite("layer_norm_distributed", _build)
