"""Layer norm, also of rows whose parts lie along a mesh axis, in torch."""

from __future__ import annotations

import torch

from popxl_torch.backends.reference import functions
from popxl_torch.backends.specs import NormSpec


def norm(spec: NormSpec, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Layer norm of the last dimension; see `NormSpec`."""
    if spec.parts is None:
        return functions.layer_norm(x, weight, bias, spec.lead, spec.epsilon)
    axis, count = spec.parts
    wide = x.float().expand(*(count if i == axis else n for i, n in enumerate(x.shape)))
    dims = (axis, x.ndim - 1)
    centred = wide - wide.mean(dims, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + spec.epsilon)
    missing = x.ndim - spec.lead - 1
    scale, offset = (functions.align(t, spec.lead, missing).float() for t in (weight, bias))
    return (normed * scale + offset).to(x.dtype)
