"""Products with weights of every kind and what follows them, in torch."""

from __future__ import annotations

import torch
from popxl_shared.groups import SHIFTS, unpacked

from popxl_torch.backends.reference.functions import ELEMENTWISE, align
from popxl_torch.backends.reference.matmul import matmul
from popxl_torch.backends.specs import NOTHING, Added, LinearSpec, StoredWeight


def linear(
    spec: LinearSpec, x: torch.Tensor, weight: StoredWeight, added: Added = NOTHING
) -> torch.Tensor:
    """`activation(x @ weight + bias) * gate + residual`; see `LinearSpec`."""
    if spec.summed is None and spec.activation is None and not added.tensors():
        return product(x, weight, spec.lead, spec.dtype)
    y = product(x, weight, spec.lead, torch.float32)
    if spec.summed is not None:
        y = y.sum(spec.summed, keepdim=True)
    return epilogue(spec, y, added)


def product(x: torch.Tensor, weight: StoredWeight, lead: int, dtype: torch.dtype) -> torch.Tensor:
    """`x @ weight` in `dtype`."""
    if weight.grouped:
        return matmul(x, dequantised(weight, x.dtype), lead, dtype)
    if weight.scale is None:
        return matmul(x, weight.tensor, lead, dtype)
    # 8 bits are exact in bfloat16; in float16 sums could overflow before they are scaled.
    between = x.dtype if x.dtype == torch.bfloat16 else torch.float32
    y = matmul(x, weight.tensor.to(x.dtype), lead, between)
    return (y * align(weight.scale, lead, 1)).to(dtype)


def dequantised(weight: StoredWeight, dtype: torch.dtype) -> torch.Tensor:
    """A weight of groups as floats, `(*mesh, in, outputs)`."""
    assert weight.scale is not None and weight.offset is not None
    words = weight.tensor
    first, end, step = SHIFTS.start, SHIFTS.stop, SHIFTS.step
    shifts = torch.arange(first, end, step, device=words.device)  # made there: no copy
    numbers = unpacked(words.to(torch.int32), shifts.int()).float()  # [..., group_size]
    values = numbers * weight.scale.float() + weight.offset.float()
    return values.flatten(-2).transpose(-1, -2).to(dtype)


def epilogue(spec: LinearSpec, y: torch.Tensor, added: Added) -> torch.Tensor:
    """`activation(y + bias) * gate + residual`."""
    if added.bias is not None:
        y = y + align(added.bias, spec.lead, y.ndim - added.bias.ndim)
    if spec.activation is not None:
        y = ELEMENTWISE[spec.activation](y)
    if added.gate is not None:
        y = y * added.gate
    if added.residual is not None:
        y = y + added.residual
    return y.to(spec.dtype)
