"""Triton kernels: attention over a KV cache, as far as it is filled.

Softmax is taken in one pass over the keys, with the largest score so far (arXiv 2205.14135).
"""

from __future__ import annotations

import triton
import triton.language as tl

BESIDE = tl.constexpr(4)
"""Numbers beside the sums of values: two, and two that keep 16 bytes."""


@triton.jit
def alibi_bias(slope, distance):
    """What is added to scores, as `popxl_shared.alibi` has it."""
    return slope * distance.to(tl.float32)


@triton.jit
def first_position(positions, tokens, length):
    """Where the first of so many tokens of a row stands: all of them are in the cache."""
    return tl.minimum(tl.maximum(tl.load(positions), 0), length - tokens)


@triton.jit
def token_position(row, positions, batch, length, FOLLOWING: tl.constexpr):
    """Where the token of a row stands; see `token_attention`."""
    if FOLLOWING:
        return first_position(positions, batch, length) + row % batch
    else:  # noqa: RET505 - decided when it is compiled
        return tl.minimum(tl.maximum(tl.load(positions + row % batch), 0), length - 1)


@triton.jit
def token_attention(
    q,
    k,
    v,
    keys,
    values,
    slopes,
    positions,
    cache_row,
    sums,
    out,
    batch,
    heads,
    length,
    cache_rows,
    parts,
    part,
    row_stride,
    head_stride,
    slopes_step,
    factor,
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    FOLLOWING: tl.constexpr,
):
    """One token a row: writes its key and value, and attends over `part` keys a program.

    The rows are those of all replicas, `batch` of each. The position is read where it is: programs
    of keys behind it end at once.

    Where tokens are `FOLLOWING`, the `batch` of a replica are the next ones of the row `cache_row`
    of its cache, where their keys and values are already.

    Args:
        q, k, v: `(rows, heads, head_dim)`, of one `row_stride` and `head_stride`.
        keys, values: `(replicas * cache_rows, heads, length, head_dim)`.
        slopes: float32 `(heads,)` of each replica, `slopes_step` apart.
        positions: int32 `(batch,)`, the same for all replicas; that of the first token where they
            are `FOLLOWING`.
        cache_row: int32 `(batch,)`, the row of the caches of each token, or None: those of their
            numbers; `(1,)` where they are `FOLLOWING`.
        sums: float32 `(rows, heads, parts, head_dim + BESIDE)`: sums of values, of weights, and
            the largest score; where there are several parts.
        out: `(rows, heads, head_dim)`; written where there is one part.
        factor: of scores.
    """
    row, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    at = token_position(row, positions, batch, length, FOLLOWING)
    held_in = (row // batch).to(tl.int64) * cache_rows
    if FOLLOWING:
        held_in += tl.load(cache_row)
    elif cache_row is not None:
        held_in += tl.minimum(tl.maximum(tl.load(cache_row + row % batch), 0), cache_rows - 1)
    else:
        held_in += row % batch
    first = tl.program_id(1) * part
    if first <= at:
        d = tl.arange(0, PADDED)
        real = d < HEAD_DIM
        own = row * row_stride + head * head_stride + d
        query = tl.load(q + own, mask=real, other=0).to(tl.float32) * factor
        new_key = tl.load(k + own, mask=real, other=0)
        new_value = tl.load(v + own, mask=real, other=0)
        slope = tl.load(slopes + row // batch * slopes_step + head)
        cache = (held_in * heads + head) * length * HEAD_DIM
        if not FOLLOWING:  # noqa: SIM102 - decided when it is compiled
            if at < first + part:
                tl.store(keys + cache + at * HEAD_DIM + d, new_key, mask=real)
                tl.store(values + cache + at * HEAD_DIM + d, new_value, mask=real)
        largest = tl.full([BLOCK], -1e30, tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        context = tl.zeros([BLOCK, PADDED], tl.float32)
        for begin in range(first, tl.minimum(first + part, at + 1), BLOCK):
            i = begin + tl.arange(0, BLOCK)
            held = (i < at)[:, None] & real[None, :]  # the token's own are not read back
            place = cache + i[:, None] * HEAD_DIM + d[None, :]
            key = tl.load(keys + place, mask=held, other=0).to(tl.float32)
            value = tl.load(values + place, mask=held, other=0).to(tl.float32)
            mine = (i == at)[:, None]
            key = tl.where(mine, new_key.to(tl.float32)[None, :], key)
            value = tl.where(mine, new_value.to(tl.float32)[None, :], value)
            score = tl.sum(key * query[None, :], 1) + alibi_bias(slope, i - at)
            score = tl.where(i <= at, score, -1e30)
            higher = tl.maximum(largest, score)
            shrink, weight = tl.exp(largest - higher), tl.where(i <= at, tl.exp(score - higher), 0)
            total = total * shrink + weight
            context = context * shrink[:, None] + value * weight[:, None]
            largest = higher
        top = tl.max(largest, 0)
        shrink = tl.exp(largest - top)
        total_sum = tl.sum(total * shrink, 0)
        context_sum = tl.sum(context * shrink[:, None], 0)
        if parts == 1:
            place = tl.program_id(0) * HEAD_DIM + d
            tl.store(out + place, (context_sum / total_sum).to(out.dtype.element_ty), mask=real)
        else:
            number = tl.program_id(0).to(tl.int64) * parts + tl.program_id(1)
            mine_at = sums + number * (HEAD_DIM + BESIDE)
            tl.store(mine_at + d, context_sum, mask=real)
            tl.store(mine_at + HEAD_DIM, total_sum)
            tl.store(mine_at + HEAD_DIM + 1, top)


@triton.jit
def joined(
    sums,
    positions,
    out,
    batch,
    heads,
    length,
    parts,
    part,
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    FOLLOWING: tl.constexpr,
):
    """What the programs of `token_attention` found, put together; the arguments are its own.

    PARTS is `parts` or more, a power of two: all are read at once.
    """
    at = token_position(tl.program_id(0) // heads, positions, batch, length, FOLLOWING)
    i, d = tl.arange(0, PARTS), tl.arange(0, PADDED)
    held = i <= at // part
    here = sums + (tl.program_id(0).to(tl.int64) * parts + i) * (HEAD_DIM + BESIDE)
    top = tl.load(here + HEAD_DIM + 1, mask=held, other=-1e30)
    total = tl.load(here + HEAD_DIM, mask=held, other=0)
    both = held[:, None] & (d < HEAD_DIM)[None, :]
    contexts = tl.load(here[:, None] + d[None, :], mask=both, other=0)
    weight = tl.where(held, tl.exp(top - tl.max(top, 0)), 0)
    context = tl.sum(contexts * weight[:, None], 0) / tl.sum(total * weight, 0)
    place = tl.program_id(0) * HEAD_DIM + d
    tl.store(out + place, context.to(out.dtype.element_ty), mask=d < HEAD_DIM)


@triton.jit
def keep_chunk(
    k,
    v,
    keys,
    values,
    position,
    row,
    tokens,
    token_stride,
    head_stride,
    length,
    kv_step,
    cache_step,
    place_step,
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Writes the keys and values of a chunk of tokens to a row of the cache.

    Axes of programs, position and row are those of `chunk_attention`.

    Args:
        k, v: `(tokens, heads, head_dim)`, of one `token_stride` and `head_stride`.
        keys, values: `(cache rows, heads, length, head_dim)`.
    """
    head, heads = tl.program_id(1), tl.num_programs(1)
    replica = tl.program_id(2).to(tl.int64)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, PADDED)
    given = (m < tokens)[:, None] & (d < HEAD_DIM)[None, :]
    own = replica * kv_step + m[:, None] * token_stride + head * head_stride + d[None, :]
    at = first_position(position + replica * place_step, tokens, length) + m
    held_in = tl.load(row + replica * place_step).to(tl.int64)
    cache = replica * cache_step + (held_in * heads + head) * length * HEAD_DIM
    place = cache + at[:, None] * HEAD_DIM + d[None, :]
    tl.store(keys + place, tl.load(k + own, mask=given, other=0), mask=given)
    tl.store(values + place, tl.load(v + own, mask=given, other=0), mask=given)


@triton.jit
def chunk_attention(
    q,
    keys,
    values,
    slopes,
    out,
    position,
    row,
    tokens,
    token_stride,
    head_stride,
    length,
    q_step,
    cache_step,
    slopes_step,
    place_step,
    factor,
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A chunk of tokens of one row of the cache, where their keys and values are already.

    Slope times distance is made in registers, in float32: a mask that is read from memory would be
    as large as the scores, and in 16 bits would round distances. Replicas, or chunks of several
    rows, are the third axis of programs; a `..._step` is from one to the next.

    Args:
        q: `(tokens, heads, head_dim)`, of `token_stride` and `head_stride`.
        keys, values: `(cache rows, heads, length, head_dim)`.
        out: `(tokens, heads, head_dim)`.
        position, row: int32 `(1,)`: where the first token stands, and the row; of each chunk.
    """
    head, heads = tl.program_id(1), tl.num_programs(1)
    replica = tl.program_id(2).to(tl.int64)
    q += replica * q_step
    slopes += replica * slopes_step
    keys += replica * cache_step
    values += replica * cache_step
    out += replica * tokens * heads * HEAD_DIM
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, PADDED)
    real, given = (d < HEAD_DIM)[None, :], (m < tokens)[:, None]
    query = tl.load(
        q + m[:, None] * token_stride + head * head_stride + d[None, :], mask=given & real, other=0
    )
    slope = tl.load(slopes + head)
    at = first_position(position + replica * place_step, tokens, length)
    cache = (tl.load(row + replica * place_step).to(tl.int64) * heads + head) * length * HEAD_DIM
    largest = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    context = tl.zeros([BLOCK_M, PADDED], tl.float32)
    filled = tl.minimum(at + (tl.program_id(0) + 1) * BLOCK_M, at + tokens)
    for begin in range(0, filled, BLOCK_N):
        i = begin + tl.arange(0, BLOCK_N)
        held = (i < filled)[:, None] & real
        place = cache + i[:, None] * HEAD_DIM + d[None, :]
        key = tl.load(keys + place, mask=held, other=0)
        value = tl.load(values + place, mask=held, other=0)
        distance = i[None, :] - (at + m)[:, None]
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * factor
        score = tl.where(distance <= 0, score + alibi_bias(slope, distance), -1e30)
        higher = tl.maximum(largest, tl.max(score, 1))
        shrink, weight = tl.exp(largest - higher), tl.exp(score - higher[:, None])
        total = total * shrink + tl.sum(weight, 1)
        context = context * shrink[:, None]
        context += tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        largest = higher
    place = m[:, None] * (heads * HEAD_DIM) + head * HEAD_DIM + d[None, :]
    result = context / total[:, None]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=given & real)
