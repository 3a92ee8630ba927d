"""Norms: of rows, also of such whose parts lie along a mesh axis, and of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom

from popxl_torch.backends.reference.functions import HALF, align
from popxl_torch.backends.specs import NormSpec


def norm(spec: NormSpec, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Layer norm of the last dimension; see `NormSpec`."""
    if spec.parts is None:
        return _layer_norm(x, weight, bias, spec.lead, spec.epsilon)
    axis, count = spec.parts
    wide = x.float().expand(*(count if i == axis else n for i, n in enumerate(x.shape)))
    dims = (axis, x.ndim - 1)
    centred = wide - wide.mean(dims, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + spec.epsilon)
    missing = x.ndim - spec.lead - 1
    scale, offset = (align(t, spec.lead, missing).float() for t in (weight, bias))
    return (normed * scale + offset).to(x.dtype)


def _layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, lead: int, eps: float
) -> torch.Tensor:
    missing = x.ndim - lead - 1
    if x.device.type != "cpu" and all(s == 1 for t in (weight, bias) for s in t.shape[:lead]):
        weight, bias = weight.reshape(-1), bias.reshape(-1)  # one kernel, with sums in float32
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    normed = F.layer_norm(x.float() if x.dtype in HALF else x, x.shape[-1:], None, None, eps)
    weight, bias = align(weight, lead, missing), align(bias, lead, missing)
    return (normed * weight.to(normed.dtype) + bias.to(normed.dtype)).to(x.dtype)


def group_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    lead: int,
    num_groups: int,
    eps: float,
) -> torch.Tensor:
    """Of `(*mesh, batch, channels, ...)`, over groups of channels."""
    wide = x.float() if x.dtype in HALF else x
    size = x.shape[lead + 1 :].numel() // num_groups
    grouped = wide.reshape(*x.shape[: lead + 1], num_groups, size)
    normed = F.layer_norm(grouped, grouped.shape[-1:], None, None, eps).reshape(x.shape)
    weight, bias = (_along_channels(t, x, lead).to(wide.dtype) for t in (weight, bias))
    return (normed * weight + bias).to(x.dtype)


def batch_norm(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    lead: int,
    eps: float,
) -> torch.Tensor:
    """Of `(*mesh, batch, channels, ...)`, with the statistics given."""
    channels = (_along_channels(t, x, lead).float() for t in (scale, bias, mean, var))
    scale, bias, mean, var = channels
    return ((x.float() - mean) * (torch.rsqrt(var + eps) * scale) + bias).to(x.dtype)


def _along_channels(t: torch.Tensor, x: torch.Tensor, lead: int) -> torch.Tensor:
    """`(*mesh, channels)`, for broadcasting against `(*mesh, batch, channels, ...)`."""
    return t.reshape(*t.shape[:lead], 1, -1, *(1,) * (x.ndim - lead - 2))
