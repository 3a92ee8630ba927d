"""The Triton kernels on torch tensors: which sizes they take, and how they are launched.

Every function returns None where its kernel does not do it; PyTorch does then.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton

from popxl.backend.gpu import attention_kernels, matrix_kernels, row_kernels
from popxl.backend.native.linear import Weight

HALF = (torch.float16, torch.bfloat16)
FLOATS = (*HALF, torch.float32)

FEW_ROWS = 64
"""Rows up to which quantised weights are taken apart in the product; for more, once before it."""

PROGRAMS = 4 * 132
"""Programs that keep the multiprocessors of an H100 or H200 busy."""

PIECE = 32
"""Inputs of which the sums are kept for weights in groups."""

MOST_PARTS, LEAST_KEYS = 32, 32
"""Of a row: programs have few keys, as a token waits for reads that come one after another."""

LARGE_SHARED = 140_000
"""Bytes of shared memory a program that data-centre GPUs have, and others have not."""

FUSED = {"enable_fp_fusion": True}
"""Of launches: products and sums in one instruction, as the counts of instructions assume."""


def linear(
    x: torch.Tensor,
    weight: Weight,
    dtype: torch.dtype,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """`activation(x @ weight + bias) + residual`, with sums in float32.

    Args:
        x: `(rows, in)`.
        weight: `(in, outputs)`.
        dtype: of the result.
        bias: `(outputs,)`.
        activation: "gelu", "geluerf" or None.
        residual: `(rows, outputs)`.
    """
    rows = x.shape[0]
    if not rows or not _known(x, weight, dtype, bias, residual):
        return None
    x, added = x.contiguous(), (bias, activation, _contiguous(residual))
    if rows == 1:
        return _row(x, weight, dtype, *added)
    if weight.scale is None:
        return finish(torch.matmul(x, weight.tensor)[None], dtype, None, *added)
    if rows > FEW_ROWS or x.dtype not in HALF:
        return finish(torch.matmul(x, floats(weight, x.dtype))[None], dtype, None, *added)
    scale = None if weight.grouped else weight.scale
    return finish(_few_rows(x, weight), dtype, scale, *added)


def floats(weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    """A quantised weight as floats, `(in, outputs)`, its bytes as `(outputs, in)`."""
    size, outputs, group = weight.sizes()
    out = torch.empty((outputs, size), dtype=dtype, device=weight.tensor.device)
    assert weight.scale is not None
    if not weight.grouped:
        return torch.mul(weight.tensor.t(), weight.scale[:, None], out=out).t()
    words, block = _words(weight), 1024
    grid = (triton.cdiv(words.numel(), block),)
    matrix_kernels.decompressed[grid](
        words, weight.scale, weight.offset, out, words.numel(), GROUP=group, BLOCK=block, **FUSED
    )
    return out.t()


def finish(
    parts: torch.Tensor,
    dtype: torch.dtype,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """`activation(sum of parts * scale + bias) + residual`, from `(parts, rows, outputs)`."""
    if len(parts) == 1 and all(t is None for t in (scale, bias, activation, residual)):
        return parts[0].to(dtype)
    splits, rows, outputs = parts.shape
    out = torch.empty((rows, outputs), dtype=dtype, device=parts.device)
    block = 1024 if rows > 1 else 256
    matrix_kernels.finish[(triton.cdiv(outputs, block), rows)](
        *(parts.contiguous(), scale, bias, residual, out, splits, rows, outputs),
        ACTIVATION=activation,
        BLOCK=block,
        **FUSED,
    )
    return out


def _row(
    x: torch.Tensor,
    weight: Weight,
    dtype: torch.dtype,
    bias: torch.Tensor | None,
    activation: str | None,
    residual: torch.Tensor | None,
) -> torch.Tensor | None:
    size, outputs, group = weight.sizes()
    out = torch.empty((1, outputs), dtype=dtype, device=x.device)
    after = (bias, residual, out)
    block_n = 8 if outputs >= 8192 else 4
    grid = (triton.cdiv(outputs, block_n),)
    even = outputs % block_n == 0
    options: dict[str, Any] = {"ACTIVATION": activation, "BLOCK_N": block_n, **FUSED}
    if weight.scale is None:
        block_k = 512 if weight.tensor.dtype == torch.float32 else 1024  # 16 bytes a thread
        row_kernels.row_times_floats[grid](
            *(x, weight.tensor, *after, size, outputs, weight.tensor.stride(1)),
            **(options | {"EVEN": even and size % block_k == 0, "BLOCK_K": block_k}),
        )
        return out
    numbers = 8 if group else 4
    pieces, words = size // PIECE, size // numbers
    ordered, sums = _arranged(x, pieces, numbers)
    if not group:
        block = 256  # 64 threads of 16 bytes
        row_kernels.row_times_bytes[grid](
            *(ordered, sums, weight.tensor.t().view(torch.int32), weight.scale, *after),
            *(words, outputs, words),
            **(options | {"EVEN": even and words % block == 0, "BLOCK_W": block, "num_warps": 2}),
        )
        return out
    block = 64
    row_kernels.row_times_groups[grid](
        *(ordered, sums, _words(weight).view(torch.int32), weight.scale, weight.offset, *after),
        *(pieces, outputs, size // group),
        GROUP=group,
        BLOCK_G=block,
        **(options | {"EVEN": even and pieces % block == 0, "BLOCK_P": block, "num_warps": 2}),
    )
    return out


def _arranged(x: torch.Tensor, pieces: int, numbers: int) -> tuple[torch.Tensor, torch.Tensor]:
    ordered = torch.empty_like(x)
    sums = torch.empty(1 + 2 * pieces, dtype=torch.float32, device=x.device)
    block = 16
    row_kernels.arranged[(triton.cdiv(pieces, block),)](
        x, ordered, sums, pieces, NUMBERS=numbers, BLOCK_P=block, **FUSED
    )
    return ordered, sums


def _few_rows(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """Sums of products, before a scale of outputs: float32 `(splits, rows, outputs)`."""
    rows, (size, outputs, group) = x.shape[0], weight.sizes()
    block_m, block_n, block_k = 16 if rows <= 16 else 32, 64, max(128, group)
    tiles = triton.cdiv(outputs, block_n) * triton.cdiv(rows, block_m)
    splits = max(1, min(PROGRAMS // tiles, size // (4 * block_k)))
    part = triton.cdiv(triton.cdiv(size, splits), block_k) * block_k
    splits = triton.cdiv(size, part)
    parts = torch.empty((splits, rows, outputs), dtype=torch.float32, device=x.device)
    words = _words(weight) if group else weight.tensor.t()
    matrix_kernels.rows_times_quantized[
        (triton.cdiv(outputs, block_n), splits, triton.cdiv(rows, block_m))
    ](
        *(x, words, *((weight.scale, weight.offset) if group else (None, None)), parts),
        *(rows, size, outputs, size // group if group else 0, part),
        GROUP=group,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        **FUSED,
    )
    return parts


def _words(weight: Weight) -> torch.Tensor:
    """int16 `(outputs, in / 4)`: few operations of CUDA know uint16."""
    return weight.tensor.view(torch.int16).flatten(-2)


def _known(
    x: torch.Tensor,
    weight: Weight,
    dtype: torch.dtype,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> bool:
    after = [t for t in (bias, residual) if t is not None]
    size, outputs, group = weight.sizes()
    if any(t.dtype not in FLOATS for t in (x, *after)) or dtype not in FLOATS or not size:
        return False
    if bias is not None and not bias.is_contiguous():
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
            and weight.tensor.t().is_contiguous()
            and weight.scale.is_contiguous()
            and size % PIECE == 0
            and weight.tensor.storage_offset() % 4 == 0
        )
    return weight.tensor.dtype == x.dtype and weight.tensor.stride(0) == 1


def _contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()


# --- attention ---


def token_attention(
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    caches: tuple[torch.Tensor, torch.Tensor],
    slopes: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor | None:
    """Write k and v at the rows' positions, and attend up to these.

    Args:
        qkv: each `(batch, heads, head_dim)`.
        caches: `(batch, heads, length, head_dim)`, written to.
        slopes: float32 `(heads,)`.
        positions: integers `(batch,)` on the device.

    Returns:
        `(batch, heads, head_dim)`.
    """
    q, (batch, heads, length, head_dim) = qkv[0], caches[0].shape
    if not _attends(q, caches, slopes):
        return None
    if any(t.stride() != q.stride() for t in qkv) or q.stride(-1) != 1:
        qkv = qkv[0].contiguous(), qkv[1].contiguous(), qkv[2].contiguous()
    part = max(LEAST_KEYS, triton.next_power_of_2(triton.cdiv(length, MOST_PARTS)))
    parts = triton.cdiv(length, part)  # by the length alone: no row depends on how many there are
    width = head_dim + attention_kernels.BESIDE.value
    sums = torch.empty((batch, heads, parts, width), dtype=torch.float32, device=q.device)
    out = torch.empty((batch, heads, head_dim), dtype=q.dtype, device=q.device)
    sizes = {"HEAD_DIM": head_dim, "PADDED": triton.next_power_of_2(head_dim), **FUSED}
    attention_kernels.token_attention[(batch * heads, parts)](
        *(*qkv, *caches, slopes, positions, sums, out),
        *(heads, length, parts, part, *qkv[0].stride()[:2], head_dim**-0.5),
        BLOCK=LEAST_KEYS,
        **sizes,
    )
    if parts > 1:
        attention_kernels.joined[(batch * heads,)](
            *(sums, positions, out, heads, length, parts, part),
            PARTS=triton.next_power_of_2(parts),
            **sizes,
        )
    return out


def chunk_attention(
    q: torch.Tensor,
    caches: tuple[torch.Tensor, torch.Tensor],
    slopes: torch.Tensor,
    at: int,
) -> torch.Tensor | None:
    """A chunk of tokens, the first of them at `at`, whose keys and values are in the cache.

    Args:
        q: `(tokens, heads, head_dim)`.
        caches: of the row, `(heads, length, head_dim)`.
    """
    tokens, heads, head_dim = q.shape
    if q.dtype not in HALF or not _attends(q, caches, slopes):
        return None
    if q.stride(-1) != 1:
        q = q.contiguous()
    out = torch.empty((tokens, heads, head_dim), dtype=q.dtype, device=q.device)
    large = shared_memory(q.device) >= LARGE_SHARED
    block_m = min(128 if large else 64, max(16, triton.next_power_of_2(tokens)))
    attention_kernels.chunk_attention[(triton.cdiv(tokens, block_m), heads)](
        *(q, *caches, slopes, out, tokens, at, *q.stride()[:2], caches[0].shape[-2]),
        head_dim**-0.5,
        HEAD_DIM=head_dim,
        PADDED=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_M=block_m,
        BLOCK_N=64,
        num_warps=8 if block_m == 128 else 4,
        num_stages=3 if large else 2,
        **FUSED,
    )
    return out


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program may have on a multiprocessor."""
    if device.type != "cuda":
        return LARGE_SHARED
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)


def _attends(
    q: torch.Tensor, caches: tuple[torch.Tensor, torch.Tensor], slopes: torch.Tensor
) -> bool:
    return (
        q.dtype in FLOATS
        and all(t.dtype == q.dtype and t.is_contiguous() for t in caches)
        and slopes.dtype == torch.float32
        and slopes.is_contiguous()
        and math.prod(q.shape) > 0
    )
