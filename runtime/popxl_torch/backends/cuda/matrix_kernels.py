"""Triton kernels: some rows times quantised weights, these as floats, and what follows a product.

`rows_times_quantized` takes weights apart tile by tile for tensor cores; where outputs are few, the
inputs are split between programs, whose sums `finish` adds up. More rows than it is for are
multiplied by PyTorch, with the weights that `decompressed` makes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from popxl_torch.backends.cuda.number_kernels import four_numbers
from popxl_torch.backends.cuda.row_kernels import finished


@triton.jit
def rows_times_quantized(
    x,
    weight,
    scale,
    offset,
    parts,
    x_step,
    weight_step,
    splits,
    rows,
    size,
    outputs,
    groups,
    part,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Sums over `part` inputs a program: x `(rows, size)`, parts float32 `(splits, rows, outputs)`.

    The second axis of programs is replicas and splits; there are weights of every replica, and x of
    each, or with an `x_step` of 0 of all.

    Args:
        weight: int16 `(outputs, size / 4)` of four numbers each; int8 `(outputs, size)` where
            `GROUP` is 0, which are not scaled.
        scale, offset: `(outputs, groups)`, None where `GROUP` is 0.
        part: a multiple of `BLOCK_K`, which is one of `GROUP`.
    """
    replica, split = (tl.program_id(1) // splits).to(tl.int64), tl.program_id(1) % splits
    x += replica * x_step
    weight += replica * weight_step
    if GROUP:
        scale += replica * outputs * groups
        offset += replica * outputs * groups
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    given, inside = (m < rows)[:, None], (n < outputs)[:, None]
    row = n.to(tl.int64)[:, None]
    first = split * part
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for begin in range(first, tl.minimum(first + part, size), BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)[None, :]
        inputs = tl.load(x + m[:, None] * size + k, mask=given & (k < size), other=0)
        if GROUP:
            w = begin // 4 + tl.arange(0, BLOCK_K // 4)[None, :]
            words = tl.load(weight + row * (size // 4) + w, mask=inside & (w < size // 4), other=0)
            numbers = four_numbers(words).to(tl.float32)
            numbers = tl.reshape(numbers, [BLOCK_N, BLOCK_K // GROUP, GROUP])
            g = begin // GROUP + tl.arange(0, BLOCK_K // GROUP)[None, :]
            both = inside & (g < groups)
            s = tl.load(scale + row * groups + g, mask=both, other=0).to(tl.float32)
            o = tl.load(offset + row * groups + g, mask=both, other=0).to(tl.float32)
            values = tl.reshape(numbers * s[:, :, None] + o[:, :, None], [BLOCK_N, BLOCK_K])
        else:
            values = tl.load(weight + row * size + k, mask=inside & (k < size), other=0)
            values = values.to(tl.float32)
        sums += tl.dot(inputs, tl.trans(values.to(x.dtype.element_ty)))
    place = tl.program_id(1).to(tl.int64) * rows + m.to(tl.int64)[:, None]
    tl.store(parts + place * outputs + n[None, :], sums, mask=given & (n < outputs)[None, :])


@triton.jit
def decompressed(words, scale, offset, out, count, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """`count` int16 words of four numbers each, in groups one after the other, as floats."""
    w = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = w < count
    numbers = four_numbers(tl.load(words + w, mask=inside, other=0)).to(tl.float32)
    s = tl.load(scale + w // (GROUP // 4), mask=inside, other=0).to(tl.float32)[:, None, None]
    o = tl.load(offset + w // (GROUP // 4), mask=inside, other=0).to(tl.float32)[:, None, None]
    values = tl.reshape(numbers * s + o, [BLOCK, 4])
    place = w[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(out + place, values.to(out.dtype.element_ty), mask=inside[:, None] & (place >= 0))


@triton.jit
def finish(
    parts,
    scale,
    bias,
    residual,
    out,
    scale_step,
    bias_step,
    splits,
    rows,
    outputs,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum of parts `(replicas, splits, rows, outputs)`, and what follows a product.

    out and residual are `(replicas, rows, outputs)`.
    """
    row, replica = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < outputs
    y = tl.zeros([BLOCK], tl.float32)
    for split in range(splits):
        part = parts + ((replica * splits + split) * rows + row) * outputs
        y += tl.load(part + n, mask=inside, other=0).to(tl.float32)
    place = (replica * rows + row) * outputs
    if scale is not None:
        scale += replica * scale_step
    if bias is not None:
        bias += replica * bias_step
    if residual is not None:
        residual += place
    y = finished(y, n, inside, scale, bias, ACTIVATION, residual)
    tl.store(out + place + n, y.to(out.dtype.element_ty), mask=inside)
