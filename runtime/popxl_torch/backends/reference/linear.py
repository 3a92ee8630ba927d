"""Products with weights of every kind and what follows them, in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from popxl_shared.groups import SHIFTS, unpacked

from popxl_torch.backends.reference.functions import align
from popxl_torch.backends.reference.matmul import matmul
from popxl_torch.backends.specs import LinearSpec, StoredWeight

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": partial(F.gelu, approximate="tanh"),
    "geluerf": F.gelu,
    "swish": F.silu,
    "relu": F.relu,
}
"""By what a spec calls them."""


def linear(
    spec: LinearSpec,
    x: torch.Tensor,
    weight: StoredWeight,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
) -> torch.Tensor:
    """`activation(x @ weight + bias) * gate + residual`; see `LinearSpec`."""
    if spec.summed is None and spec.activation is bias is residual is gate is None:
        return product(x, weight, spec.lead, spec.dtype)
    y = product(x, weight, spec.lead, torch.float32)
    if spec.summed is not None:
        y = y.sum(spec.summed, keepdim=True)
    return epilogue(spec, y, bias, residual, gate)


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


def epilogue(
    spec: LinearSpec,
    y: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
) -> torch.Tensor:
    """`activation(y + bias) * gate + residual`."""
    if bias is not None:
        y = y + align(bias, spec.lead, y.ndim - bias.ndim)
    if spec.activation is not None:
        y = ACTIVATIONS[spec.activation](y)
    if gate is not None:
        y = y * gate
    if residual is not None:
        y = y + residual
    return y.to(spec.dtype)
