"""Products by the Triton kernels: which sizes they take, and how they are launched."""

from __future__ import annotations

from typing import Any

import torch
import triton

from popxl_torch.backends.cuda import matrix_kernels, row_kernels
from popxl_torch.backends.cuda.launches import FLOATS, FUSED, HALF
from popxl_torch.backends.specs import StoredWeight

MOST_QUANTISED_ROWS = 64
"""Rows up to which quantised weights are taken apart in the product; for more, once before it."""

LARGEST_GROUP = 256
"""Elements that a tile of the product is as wide as; wider ones are more than registers hold."""

PROGRAMS = 4 * 132
"""Programs that keep the multiprocessors of an H100 or H200 busy."""

PIECE = 32
"""Inputs of which the sums are kept for weights in groups."""


def linear(
    x: torch.Tensor,
    weight: StoredWeight,
    dtype: torch.dtype,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """`activation(x @ weight + bias) + residual`, with sums in float32.

    Args:
        x: `(replicas, rows, in)`.
        weight: `(replicas, in, outputs)`.
        dtype: of the result.
        bias: `(replicas, outputs)`.
        activation: "gelu", "geluerf" or None.
        residual: `(replicas, rows, outputs)`.

    Returns:
        `(replicas, rows, outputs)`; None where the kernels do not do it.
    """
    rows = x.shape[1]
    if not rows or not _known(x, weight, dtype, bias, residual):
        return None
    if not x[0].is_contiguous():
        x = x.contiguous()
    added = (bias, activation, None if residual is None else residual.contiguous())
    if rows == 1:
        return _row(x, weight, dtype, *added)
    if weight.scale is None:
        return finish(torch.matmul(x, weight.tensor)[:, None], dtype, None, *added)
    if rows > MOST_QUANTISED_ROWS or x.dtype not in HALF or weight.sizes()[2] > LARGEST_GROUP:
        return finish(torch.matmul(x, floats(weight, x.dtype))[:, None], dtype, None, *added)
    scale = None if weight.grouped else weight.scale
    return finish(_few_rows(x, weight), dtype, scale, *added)


def floats(weight: StoredWeight, dtype: torch.dtype) -> torch.Tensor:
    """A quantised weight as floats, `(replicas, in, outputs)`, its bytes with `in` last."""
    size, outputs, group = weight.sizes()
    shape = (len(weight.tensor), outputs, size)
    out = torch.empty(shape, dtype=dtype, device=weight.tensor.device)
    assert weight.scale is not None
    if not weight.grouped:
        return torch.mul(weight.tensor.mT, weight.scale[..., None], out=out).mT
    words, block = _words(weight), 1024
    grid = (triton.cdiv(words.numel(), block),)
    matrix_kernels.decompressed[grid](
        words, weight.scale, weight.offset, out, words.numel(), GROUP=group, BLOCK=block, **FUSED
    )
    return out.mT


def finish(
    parts: torch.Tensor,
    dtype: torch.dtype,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """`activation(sum of parts * scale + bias) + residual`.

    Args:
        parts: `(replicas, parts, rows, outputs)`.
    """
    replicas, splits, rows, outputs = parts.shape
    if splits == 1 and all(t is None for t in (scale, bias, activation, residual)):
        return parts[:, 0].to(dtype)
    out = torch.empty((replicas, rows, outputs), dtype=dtype, device=parts.device)
    block = 1024 if rows > 1 else 256
    matrix_kernels.finish[(triton.cdiv(outputs, block), rows, replicas)](
        *(parts.contiguous(), scale, bias, residual, out, _step(scale), _step(bias)),
        *(splits, rows, outputs),
        ACTIVATION=activation,
        BLOCK=block,
        **FUSED,
    )
    return out


def _row(
    x: torch.Tensor,
    weight: StoredWeight,
    dtype: torch.dtype,
    bias: torch.Tensor | None,
    activation: str | None,
    residual: torch.Tensor | None,
) -> torch.Tensor | None:
    size, outputs, group = weight.sizes()
    replicas = len(weight.tensor)
    out = torch.empty((replicas, 1, outputs), dtype=dtype, device=x.device)
    after = (bias, residual, out)
    block_n = 8 if outputs >= 8192 else 4
    grid = (triton.cdiv(outputs, block_n), replicas)
    even = outputs % block_n == 0
    options: dict[str, Any] = {"ACTIVATION": activation, "BLOCK_N": block_n, **FUSED}
    if weight.scale is None:
        block_k = 512 if weight.tensor.dtype == torch.float32 else 1024  # 16 bytes a thread
        row_kernels.row_times_floats[grid](
            *(x, weight.tensor, *after, _step(x), _step(weight.tensor), _step(bias)),
            *(size, outputs, weight.tensor.stride(2)),
            **(options | {"EVEN": even and size % block_k == 0, "BLOCK_K": block_k}),
        )
        return out
    numbers = 8 if group else 4
    pieces, words = size // PIECE, size // numbers
    ordered, sums = _arranged(x, replicas, pieces, numbers)
    if not group:
        block = 256  # 64 threads of 16 bytes
        row_kernels.row_times_bytes[grid](
            *(ordered, sums, weight.tensor.mT.view(torch.int32), weight.scale, *after),
            *(outputs * words, _step(weight.scale), _step(bias), words, outputs, words),
            **(options | {"EVEN": even and words % block == 0, "BLOCK_W": block, "num_warps": 2}),
        )
        return out
    block = 64
    row_kernels.row_times_groups[grid](
        *(ordered, sums, _words(weight).view(torch.int32), weight.scale, weight.offset, *after),
        *(_step(bias), pieces, outputs, size // group),
        GROUP=group,
        COARSE=x.dtype in HALF,
        BLOCK_G=block,
        **(options | {"EVEN": even and pieces % block == 0, "BLOCK_P": block, "num_warps": 2}),
    )
    return out


def _arranged(
    x: torch.Tensor, replicas: int, pieces: int, numbers: int
) -> tuple[torch.Tensor, torch.Tensor]:
    ordered = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    sums = torch.empty((replicas, 1 + 2 * pieces), dtype=torch.float32, device=x.device)
    block = 16
    row_kernels.arranged[(triton.cdiv(pieces, block), replicas)](
        *(x, ordered, sums, _step(x), pieces),
        NUMBERS=numbers,
        COARSE=x.dtype in HALF,
        BLOCK_P=block,
        **FUSED,
    )
    return ordered, sums


def _few_rows(x: torch.Tensor, weight: StoredWeight) -> torch.Tensor:
    """Sums of products, before a scale of outputs: float32 `(replicas, splits, rows, outputs)`."""
    (replicas, rows, _), (size, outputs, group) = x.shape, weight.sizes()
    block_m, block_n, block_k = 16 if rows <= 16 else 32, 64, max(128, group)
    tiles = replicas * triton.cdiv(outputs, block_n) * triton.cdiv(rows, block_m)
    splits = max(1, min(PROGRAMS // tiles, size // (4 * block_k)))
    part = triton.cdiv(triton.cdiv(size, splits), block_k) * block_k
    splits = triton.cdiv(size, part)
    parts = torch.empty((replicas, splits, rows, outputs), dtype=torch.float32, device=x.device)
    words = _words(weight) if group else weight.tensor.mT
    matrix_kernels.rows_times_quantized[
        (triton.cdiv(outputs, block_n), replicas * splits, triton.cdiv(rows, block_m))
    ](
        *(x, words, *((weight.scale, weight.offset) if group else (None, None)), parts),
        *(_step(x), _step(words), splits, rows, size, outputs, size // group if group else 0, part),
        GROUP=group,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        **FUSED,
    )
    return parts


def _words(weight: StoredWeight) -> torch.Tensor:
    """int16 `(replicas, outputs, in / 4)`: few operations of CUDA know uint16."""
    return weight.tensor.view(torch.int16).flatten(-2)


def _known(
    x: torch.Tensor,
    weight: StoredWeight,
    dtype: torch.dtype,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> bool:
    after = [t for t in (bias, residual) if t is not None]
    size, outputs, group = weight.sizes()
    if any(t.dtype not in FLOATS for t in (x, *after)) or dtype not in FLOATS or not size:
        return False
    if bias is not None and bias.stride(-1) != 1:
        return False
    if weight.grouped:
        scales = weight.scale, weight.offset
        return (
            weight.tensor.dtype == torch.uint16
            and group % PIECE == 0
            and group & (group - 1) == 0
            and all(t is not None and t.dtype in FLOATS and t.is_contiguous() for t in scales)
            and weight.tensor.is_contiguous()
            and weight.tensor.storage_offset() % 2 == 0
        )
    if weight.scale is not None:
        return (
            weight.tensor.dtype == torch.int8
            and weight.tensor.mT.is_contiguous()
            and weight.scale.stride(-1) == 1
            and size % PIECE == 0
            and weight.tensor.storage_offset() % 4 == 0
        )
    return weight.tensor.dtype == x.dtype and weight.tensor.stride(1) == 1


def _step(tensor: torch.Tensor | None) -> int:
    """From a replica's tensor to the next's."""
    return 0 if tensor is None else tensor.stride(0)
