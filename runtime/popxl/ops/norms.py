"""Normalisation of `(batch, channels, ...)`, in float32 for half types."""

from __future__ import annotations

from popxl.ops._build import emit_one, need_float, same_dtype, tensor_operand
from popxl.ops.windows import spatial_rank
from popxl.tensor import Tensor


def group_norm(
    t: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float = 1e-05
) -> Tensor:
    """Group norm (arXiv 1803.08494): mean and variance of each sample's groups of channels.

    Args:
        t: `(batch, channels, ...)`.
        weight, bias: `(channels,)`; scale and shift each channel.
        num_groups: groups of consecutive channels; divides `channels`.
        eps: added to the variance.

    Raises:
        TypeError: where they do not hold floats of one dtype.
        ValueError: where shapes do not fit, or `num_groups` does not divide the channels.
    """
    return _normed("group_norm", t, weight, bias, num_groups, eps)


def layer_norm(t: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-05) -> Tensor:
    """Group norm with one group: statistics over all axes but the first.

    Of `(rows, hidden)` that is layer norm (arXiv 1607.06450). PopXL means the same by it: reshape
    what has more axes to `(rows, hidden)` for a norm of the last one.

    Args:
        t: `(batch, channels, ...)`.
        weight, bias: `(channels,)`, along axis 1.
        eps: added to the variance.

    Raises:
        TypeError: where they do not hold floats of one dtype.
        ValueError: where shapes do not fit.
    """
    return _normed("layer_norm", t, weight, bias, 1, eps)


def _normed(
    kind: str, t: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float
) -> Tensor:
    same_dtype(kind, *(tensor_operand(kind, v) for v in (t, weight, bias)))
    need_float(kind, t)
    if t.rank < 2:
        raise ValueError(
            f"{kind}: {t.name} must be (batch, channels, ...), with 2 axes or more, got {t.shape}"
        )
    channels = t.shape[1]
    _need_channels(kind, t, weight=weight, bias=bias)
    if num_groups < 1 or channels % num_groups:
        raise ValueError(
            f"{kind}: num_groups must divide the {channels} channels, got {num_groups}"
        )
    inputs = [t, weight, bias]
    if t.rank == 2 and num_groups == 1:
        return emit_one("layer_norm", inputs, t.spec, eps=float(eps))
    return emit_one("group_norm", inputs, t.spec, eps=float(eps), num_groups=num_groups)


def batch_norm_inference(
    t: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    epsilon: float = 1e-05,
    momentum: float = 0.9,
) -> Tensor:
    """Batch norm (arXiv 1502.03167) with the statistics given.

    Args:
        t: `(batch, channels, *spatial)`.
        scale, bias: `(channels,)`, of the dtype of `t`.
        mean, var: `(channels,)`, of any float type.
        epsilon: added to the variance.
        momentum: of running statistics, which inference does not change: no effect.

    Raises:
        TypeError: where dtypes do not fit.
        ValueError: where `t` has no spatial axis or another tensor is not `(channels,)`.
    """
    kind = "batch_norm_inference"
    inputs = [tensor_operand(kind, v) for v in (t, scale, bias, mean, var)]
    need_float(kind, *inputs)
    same_dtype(kind, t, scale, bias)
    spatial_rank(kind, t)
    _need_channels(kind, t, scale=scale, bias=bias, mean=mean, var=var)
    return emit_one(kind, inputs, t.spec, eps=float(epsilon))


def _need_channels(kind: str, t: Tensor, **given: Tensor) -> None:
    for what, tensor in given.items():
        if tensor.shape != t.shape[1:2]:
            raise ValueError(f"{kind}: {what} must be of shape {t.shape[1:2]}, got {tensor.shape}")
