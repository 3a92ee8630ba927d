"""Attention by the Triton kernels: which sizes they take, and how they are launched."""

from __future__ import annotations

import functools
import math

import torch
import triton

from popxl.backend.gpu import attention_kernels
from popxl.backend.gpu.launches import FLOATS, FUSED, HALF

MOST_PARTS, LEAST_KEYS = 32, 32
"""Of a row: programs have few keys, as a token waits for reads that come one after another."""

LARGE_SHARED = 140_000
"""Bytes of shared memory a program that data-centre GPUs have, and others have not."""


def token_attention(
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    caches: tuple[torch.Tensor, torch.Tensor],
    slopes: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor | None:
    """Write k and v at the rows' positions, and attend up to these.

    Args:
        qkv: each `(replicas * batch, heads, head_dim)`.
        caches: `(replicas * batch, heads, length, head_dim)`, written to.
        slopes: float32 `(replicas, heads)`.
        positions: integers `(batch,)` on the device.

    Returns:
        Like q; None where the kernel does not do it.
    """
    q, (rows, heads, length, head_dim) = qkv[0], caches[0].shape
    if not _attends(q, caches, slopes):
        return None
    if any(t.stride() != q.stride() for t in qkv) or q.stride(-1) != 1:
        qkv = qkv[0].contiguous(), qkv[1].contiguous(), qkv[2].contiguous()
    part = max(LEAST_KEYS, triton.next_power_of_2(triton.cdiv(length, MOST_PARTS)))
    parts = triton.cdiv(length, part)  # by the length alone: no row depends on how many there are
    width = head_dim + attention_kernels.BESIDE.value
    sums = torch.empty((rows, heads, parts, width), dtype=torch.float32, device=q.device)
    out = torch.empty((rows, heads, head_dim), dtype=q.dtype, device=q.device)
    sizes = {"HEAD_DIM": head_dim, "PADDED": triton.next_power_of_2(head_dim), **FUSED}
    attention_kernels.token_attention[(rows * heads, parts)](
        *(*qkv, *caches, slopes, positions, sums, out),
        *(len(positions), heads, length, parts, part, *qkv[0].stride()[:2], slopes.stride(0)),
        head_dim**-0.5,
        BLOCK=LEAST_KEYS,
        **sizes,
    )
    if parts > 1:
        attention_kernels.joined[(rows * heads,)](
            *(sums, positions, out, len(positions), heads, length, parts, part),
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
        q: `(replicas, tokens, heads, head_dim)`.
        caches: of the row, `(replicas, heads, length, head_dim)`.
        slopes: float32 `(replicas, heads)`.

    Returns:
        Like q; None where the kernel does not do it.
    """
    replicas, tokens, heads, head_dim = q.shape
    if q.dtype not in HALF or not _attends(q, caches, slopes):
        return None
    if q.stride(-1) != 1:
        q = q.contiguous()
    out = torch.empty((replicas, tokens, heads, head_dim), dtype=q.dtype, device=q.device)
    large = shared_memory(q.device) >= LARGE_SHARED
    block_m = min(128 if large else 64, max(16, triton.next_power_of_2(tokens)))
    attention_kernels.chunk_attention[(triton.cdiv(tokens, block_m), heads, replicas)](
        *(q, *caches, slopes, out, tokens, at, *q.stride()[1:3], caches[0].shape[-2]),
        *(q.stride(0), caches[0].stride(0), slopes.stride(0), head_dim**-0.5),
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
        and all(t.dtype == q.dtype and t[0].is_contiguous() for t in caches)
        and caches[0].stride() == caches[1].stride()
        and slopes.dtype == torch.float32
        and slopes.stride(-1) == 1
        and math.prod(q.shape) > 0
    )
