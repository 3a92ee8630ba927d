"""Matrix products with the mesh in front, and in which dtype they are computed."""

from __future__ import annotations

import torch
from popxl_shared.limits import FEW_ROWS

from popxl_torch.backends.reference.functions import HALF, align


def matmul(x: torch.Tensor, w: torch.Tensor, lead: int, dtype: torch.dtype) -> torch.Tensor:
    """`(*mesh, ..., n, k) @ (*mesh, ..., k, m)` in `dtype`; both operands of rank 2 or more."""
    compute = _matmul_type(x, w, lead, dtype)
    if x.dtype != compute:
        x, w = x.to(compute), w.to(compute)
    result = _mesh_matmul(x, w, lead) if lead else torch.matmul(x, w)
    return result if result.dtype == dtype else result.to(dtype)


def _matmul_type(x: torch.Tensor, w: torch.Tensor, lead: int, dtype: torch.dtype) -> torch.dtype:
    """The type to compute in: half only where the result is, and the device is quick at it."""
    if x.dtype not in HALF:
        return x.dtype
    if dtype != x.dtype:
        return torch.float32
    if x.dtype == torch.bfloat16:
        return x.dtype
    rows = x.shape[-2] if w.ndim - lead > 2 else x.shape[lead:-1].numel()
    return torch.float32 if x.device.type == "cpu" and rows > FEW_ROWS else x.dtype


def _mesh_matmul(x: torch.Tensor, w: torch.Tensor, lead: int) -> torch.Tensor:
    x_rank, w_rank = x.ndim - lead, w.ndim - lead
    if w_rank > 2:
        rank = max(x_rank, w_rank)
        return torch.matmul(align(x, lead, rank - x_rank), align(w, lead, rank - w_rank))
    inner = x.shape[lead:-1]
    rows = _rows_matmul(x.reshape(*x.shape[:lead], -1, x.shape[-1]), w, lead)
    return rows.reshape(*rows.shape[:lead], *inner, w.shape[-1])


def _rows_matmul(x: torch.Tensor, w: torch.Tensor, lead: int) -> torch.Tensor:
    """`(*mesh, n, k) @ (*mesh, k, m)`; a mesh axis along which `w` is the same becomes rows."""
    shared = [i for i in range(lead) if w.shape[i] == 1]
    varying = [i for i in range(lead) if w.shape[i] > 1]
    ahead = x.permute(*varying, *shared, lead, lead + 1)
    folded = ahead.reshape(*ahead.shape[: len(varying)], -1, x.shape[-1])
    weights = w.reshape(*(w.shape[i] for i in varying), *w.shape[lead:])
    product = torch.matmul(folded, weights)
    product = product.reshape(
        *product.shape[: len(varying)], *(x.shape[i] for i in shared), x.shape[-2], w.shape[-1]
    )
    back = sorted(range(lead), key=lambda i: (varying + shared)[i])
    return product.permute(*back, lead, lead + 1)
