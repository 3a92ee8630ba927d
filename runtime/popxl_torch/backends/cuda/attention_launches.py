"""Attention by the Triton kernels: which sizes they take, and how they are launched.

Each gives what is like q, or None where the kernel does not do it.
"""

from __future__ import annotations

import functools
import math

import torch
import triton

from popxl_torch.backends.cuda import attention_kernels
from popxl_torch.backends.cuda.launches import FLOATS, FUSED, HALF

MOST_PARTS, LEAST_KEYS = 32, 32
"""Of a row: programs have few keys, as a token waits for reads that come one after another."""

LARGE_SHARED = 140_000
"""Bytes of shared memory a program that data-centre GPUs have, and others have not."""


Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Two = tuple[torch.Tensor, torch.Tensor]


def token_attention(
    qkv: Three,
    caches: Two,
    slopes: torch.Tensor,
    positions: torch.Tensor,
    rows: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Write k and v at the rows' positions, and attend up to these.

    Args:
        qkv: each `(replicas, batch, heads, head_dim)`.
        caches: `(replicas, cache rows, heads, length, head_dim)`, written to.
        slopes: float32 `(replicas, heads)`.
        positions: integers `(batch,)` on the device.
        rows: of the caches that the tokens are of, `(batch,)` likewise; the first ones where None.
    """
    if not _attends(qkv[0], caches, slopes):
        return None
    return _each_token(_alike(qkv), caches, slopes, positions, rows, following=False)


def verify_attention(
    qkv: Three, caches: Two, slopes: torch.Tensor, position: torch.Tensor, row: torch.Tensor
) -> torch.Tensor | None:
    """What `token_attention` gives for the next tokens of one row, one after the other.

    Args:
        qkv: each `(replicas, tokens, heads, head_dim)`.
        caches: `(replicas, cache rows, heads, length, head_dim)`, written to.
        slopes: float32 `(replicas, heads)`.
        position: on the device, its first element where the first token stands.
        row: of the caches, `(1,)` on the device.
    """
    if not _attends(qkv[0], caches, slopes):
        return None
    qkv = _alike(qkv)
    _keep(qkv, caches, position, row)
    return _each_token(qkv, caches, slopes, position, row, following=True)


def chunk_attention(
    qkv: Three, caches: Two, slopes: torch.Tensor, position: torch.Tensor, row: torch.Tensor
) -> torch.Tensor | None:
    """Write k and v of a chunk of tokens of one row, and attend; arguments as `verify_attention`.

    Of several rows the tokens are blocks of as many, each with a position and a row of its own.
    """
    q, (replicas, _, heads, length, head_dim) = qkv[0], caches[0].shape
    blocks = position.numel()
    if q.dtype not in HALF or not _attends(q, caches, slopes) or (blocks > 1 and replicas > 1):
        return None
    qkv = q, _, _ = _alike(_blocks(qkv, blocks))
    _keep(qkv, caches, position, row)
    tokens = q.shape[1]
    steps = [0 if blocks > 1 else t.stride(0) for t in (caches[0], slopes)]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    large = shared_memory(q.device) >= LARGE_SHARED
    block_m = min(128 if large else 64, max(16, triton.next_power_of_2(tokens)))
    attention_kernels.chunk_attention[(triton.cdiv(tokens, block_m), heads, len(q))](
        *(q, *caches, slopes, out, position, row, tokens, *q.stride()[1:3], length),
        *(q.stride(0), *steps, int(blocks > 1), head_dim**-0.5),
        HEAD_DIM=head_dim,
        PADDED=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_M=block_m,
        BLOCK_N=64,
        num_warps=8 if block_m == 128 else 4,
        num_stages=3 if large else 2,
        **FUSED,
    )
    return out.view(-1, blocks * tokens, heads, head_dim)


def _blocks(qkv: Three, count: int) -> Three:
    """Tokens of one replica in blocks, which lie as those of replicas do."""
    if count == 1:
        return qkv
    q, k, v = (t.reshape(count, t.shape[1] // count, *t.shape[2:]) for t in qkv)
    return q, k, v


def _keep(qkv: Three, caches: Two, position: torch.Tensor, row: torch.Tensor) -> None:
    """Write k and v of chunks of tokens, each to a row of the caches."""
    k, (_, _, heads, length, head_dim) = qkv[1], caches[0].shape
    tokens, block, chunks = k.shape[1], 16, position.numel() > 1 and row.numel() > 1
    attention_kernels.keep_chunk[(triton.cdiv(tokens, block), heads, len(k))](
        *(*qkv[1:], *caches, position, row, tokens, *k.stride()[1:3], length),
        *(k.stride(0), 0 if chunks else caches[0].stride(0), int(chunks)),
        HEAD_DIM=head_dim,
        PADDED=triton.next_power_of_2(head_dim),
        BLOCK_M=block,
        **FUSED,
    )


def _each_token(
    qkv: Three,
    caches: Two,
    slopes: torch.Tensor,
    positions: torch.Tensor,
    cache_row: torch.Tensor | None,
    *,
    following: bool,
) -> torch.Tensor:
    q, k, v = _alike((qkv[0].flatten(0, 1), qkv[1].flatten(0, 1), qkv[2].flatten(0, 1)))
    (_, cache_rows, heads, length, head_dim), batch, rows = caches[0].shape, qkv[0].shape[1], len(q)
    part = max(LEAST_KEYS, triton.next_power_of_2(triton.cdiv(length, MOST_PARTS)))
    parts = triton.cdiv(length, part)  # by the length alone: no row depends on how many there are
    width = head_dim + attention_kernels.BESIDE.value
    sums = torch.empty((rows, heads, parts, width), dtype=torch.float32, device=q.device)
    out = torch.empty((rows, heads, head_dim), dtype=q.dtype, device=q.device)
    sizes = {"HEAD_DIM": head_dim, "PADDED": triton.next_power_of_2(head_dim), **FUSED}
    sizes["FOLLOWING"] = following
    attention_kernels.token_attention[(rows * heads, parts)](
        *(q, k, v, *caches, slopes, positions, cache_row, sums, out),
        *(batch, heads, length, cache_rows, parts, part, *q.stride()[:2], slopes.stride(0)),
        head_dim**-0.5,
        BLOCK=LEAST_KEYS,
        **sizes,
    )
    if parts > 1:
        attention_kernels.joined[(rows * heads,)](
            *(sums, positions, out, batch, heads, length, parts, part),
            PARTS=triton.next_power_of_2(parts),
            **sizes,
        )
    return out.view(qkv[0].shape)


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program may have on a multiprocessor."""
    if device.type != "cuda":
        return LARGE_SHARED
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)


def _attends(q: torch.Tensor, caches: Two, slopes: torch.Tensor) -> bool:
    return (
        q.dtype in FLOATS
        and all(t.dtype == q.dtype and t.is_contiguous() for t in caches)
        and slopes.dtype == torch.float32
        and slopes.stride(-1) == 1
        and math.prod(q.shape) > 0
    )


def _alike(qkv: Three) -> Three:
    """q, k and v of the same strides, their elements side by side."""
    q, k, v = qkv
    if q.stride(-1) == 1 and _steps(q) == _steps(k) == _steps(v):
        return qkv
    return q.contiguous(), k.contiguous(), v.contiguous()


def _steps(tensor: torch.Tensor) -> list[int]:
    """Its strides, but for axes of one element, where they say nothing."""
    sizes = zip(tensor.stride(), tensor.shape, strict=True)
    return [stride for stride, size in sizes if size > 1]
