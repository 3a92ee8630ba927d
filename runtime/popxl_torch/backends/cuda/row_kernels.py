"""Triton kernels: one row times a weight that is read once, of each of several replicas.

One token reads every weight once, so these wait for memory. A program has `BLOCK_N` outputs and
goes along their inputs; weights lie in rows of outputs. A thread reads 16 bytes of each of its
outputs at a time, and multiplies in float32 with inputs that it keeps for all of them: with 8
outputs that is 128 bytes a thread under way, 64 kB a multiprocessor at 512 threads, where about 30
kB hide the latency of an H100's or H200's memory (4.8 TB/s for some 0.8 us, over 132
multiprocessors). A matrix of 14336 outputs is 1792 programs; so the sum over inputs need not be
split between programs.

Replicas are the second axis of programs; a `..._step` is from one replica's tensor to the next's, 0
where they hold one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from popxl_torch.backends.cuda.number_kernels import eight_times, factors, four_times


@triton.jit
def own(tensor, step):
    """The tensor of this program's replica; None where there is none."""
    if tensor is not None:
        tensor += tl.program_id(1).to(tl.int64) * step
    return tensor


@triton.jit
def finished(y, n, inside, scale, bias, ACTIVATION: tl.constexpr, residual):
    """`activation(y * scale + bias) + residual` for the outputs `n` of a row."""
    if scale is not None:
        y *= tl.load(scale + n, mask=inside, other=0).to(tl.float32)
    if bias is not None:
        y += tl.load(bias + n, mask=inside, other=0).to(tl.float32)
    if ACTIVATION == "gelu":  # x / (1 + exp(-2u)) is x * (1 + tanh(u)) / 2
        u = 0.7978845608028654 * (y + 0.044715 * y * y * y)
        y = y / (1 + tl.exp(-2 * u))
    if ACTIVATION == "geluerf":
        y = 0.5 * y * (1 + tl.erf(y * 0.7071067811865476))
    if residual is not None:
        y += tl.load(residual + n, mask=inside, other=0).to(tl.float32)
    return y


@triton.jit
def row_times_floats(
    x,
    weight,
    bias,
    residual,
    out,
    x_step,
    weight_step,
    bias_step,
    size,
    outputs,
    stride,
    ACTIVATION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """x `(size,)`, weight `(outputs, size)` with `stride` between rows; out `(outputs,)`."""
    x, weight, bias = own(x, x_step), own(weight, weight_step), own(bias, bias_step)
    residual, out = own(residual, outputs), own(out, outputs)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (n < outputs) | EVEN
    rows = weight + n.to(tl.int64)[:, None] * stride
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for begin in range(0, size, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)[None, :]
        more = (k < size) | EVEN
        given = tl.load(x + k, mask=more, other=0).to(tl.float32)
        read = tl.load(
            rows + k, mask=inside[:, None] & more, other=0, eviction_policy="evict_first"
        )
        sums += read.to(tl.float32) * given
    y = finished(tl.sum(sums, 1), n, inside, None, bias, ACTIVATION, residual)
    tl.store(out + n, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def arranged(
    x,
    out,
    sums,
    x_step,
    pieces,
    NUMBERS: tl.constexpr,
    COARSE: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """x `(pieces, 32)` in the order in which words of `NUMBERS` numbers are taken apart.

    out float32 `(NUMBERS, pieces * 32 / NUMBERS)`: the inputs of the words' first numbers, then
    those of their second ones, of eight with their factors. sums `(1 + 2 * pieces,)`: 1.0, or 1.5
    for four numbers, what the ones of `row_times_groups` add up to in a piece, and the sum of a
    piece's inputs.
    """
    x, out, sums = own(x, x_step), own(out, pieces * 32), own(sums, 1 + 2 * pieces)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    i = tl.arange(0, 32)[None, :]
    inside = (p < pieces) & (i >= 0)
    given = tl.load(x + p * 32 + i, mask=inside, other=0).to(tl.float32)
    number = i % NUMBERS
    multiplied = given
    if NUMBERS == 8:
        multiplied = given * factors(number, COARSE)
    place = number * (pieces * 32 // NUMBERS) + (p * 32 + i) // NUMBERS
    tl.store(out + place, multiplied, mask=inside)
    q = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    tl.store(sums + 1 + q, tl.sum(multiplied, 1), mask=q < pieces)
    tl.store(sums + 1 + pieces + q, tl.sum(given, 1), mask=q < pieces)
    tl.store(sums, 1.0 if NUMBERS == 8 else 1.5)


@triton.jit
def row_times_bytes(
    x,
    added,
    weight,
    scale,
    bias,
    residual,
    out,
    weight_step,
    scale_step,
    bias_step,
    words,
    outputs,
    stride,
    ACTIVATION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """x `(4, words)` as `arranged`, weight int32 `(outputs, words)` of four int8 each."""
    x, added = own(x, 4 * words), own(added, 1 + words // 4)
    weight, scale, bias = own(weight, weight_step), own(scale, scale_step), own(bias, bias_step)
    residual, out = own(residual, outputs), own(out, outputs)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (n < outputs) | EVEN
    rows = weight + n.to(tl.int64)[:, None] * stride
    one = tl.load(added).to(tl.int32, bitcast=True)
    sums = tl.zeros([BLOCK_N, BLOCK_W], tl.float32)
    given = tl.zeros([1, BLOCK_W], tl.float32)
    for begin in range(0, words, BLOCK_W):
        w = begin + tl.arange(0, BLOCK_W)[None, :]
        more = (w < words) | EVEN
        both = inside[:, None] & more
        four = tl.load(rows + w, mask=both, other=0, eviction_policy="evict_first")
        x0 = tl.load(x + w, mask=more, other=0)
        x1 = tl.load(x + words + w, mask=more, other=0)
        x2 = tl.load(x + 2 * words + w, mask=more, other=0)
        x3 = tl.load(x + 3 * words + w, mask=more, other=0)
        given += (x0 + x1) + (x2 + x3)
        sums += four_times(four, x0, x1, x2, x3, one)
    y = tl.sum(256 * sums - 384 * given, 1)
    y = finished(y, n, inside, scale, bias, ACTIVATION, residual)
    tl.store(out + n, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def row_times_groups(
    x,
    added,
    weight,
    scale,
    offset,
    bias,
    residual,
    out,
    bias_step,
    pieces,
    outputs,
    groups,
    ACTIVATION: tl.constexpr,
    EVEN: tl.constexpr,
    GROUP: tl.constexpr,
    COARSE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """x `(8, 4 * pieces)` as `arranged`, with the sums `added`.

    weight int32 `(outputs, pieces, 4)` of two words of 16 bits each, scale and offset `(outputs,
    groups)`.
    """
    x, added = own(x, 32 * pieces), own(added, 1 + 2 * pieces)
    weight, bias = own(weight, outputs * pieces * 4), own(bias, bias_step)
    scale, offset = own(scale, outputs * groups), own(offset, outputs * groups)
    residual, out = own(residual, outputs), own(out, outputs)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (n < outputs) | EVEN
    row = n.to(tl.int64)[:, None]
    words = pieces * 4
    one = tl.load(added).to(tl.int32, bitcast=True)
    scales = scale + row * groups
    rows = weight + row[:, :, None] * words
    sums = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)
    for begin in range(0, pieces, BLOCK_P):
        p = begin + tl.arange(0, BLOCK_P)[None, :]
        more = (p < pieces) | EVEN
        w = p[:, :, None] * 4 + tl.arange(0, 4)[None, None, :]
        every = (w < words) | EVEN
        both = inside[:, None, None] & every
        eight = tl.load(rows + w, mask=both, other=0, eviction_policy="evict_first")
        s = tl.load(scales + p * 32 // GROUP, mask=inside[:, None] & more, other=0).to(tl.float32)
        ones = tl.load(added + 1 + p, mask=more, other=0)
        x0 = tl.load(x + w, mask=every, other=0)
        x1 = tl.load(x + words + w, mask=every, other=0)
        x2 = tl.load(x + 2 * words + w, mask=every, other=0)
        x3 = tl.load(x + 3 * words + w, mask=every, other=0)
        x4 = tl.load(x + 4 * words + w, mask=every, other=0)
        x5 = tl.load(x + 5 * words + w, mask=every, other=0)
        x6 = tl.load(x + 6 * words + w, mask=every, other=0)
        x7 = tl.load(x + 7 * words + w, mask=every, other=0)
        part = eight_times(eight, x0, x1, x2, x3, x4, x5, x6, x7, one, COARSE)
        sums += s * (tl.sum(part, 2) - ones)
    y = 16 * tl.sum(sums, 1)
    sums = tl.zeros([BLOCK_N, BLOCK_G], tl.float32)
    for begin in range(0, groups, BLOCK_G):
        g = begin + tl.arange(0, BLOCK_G)[None, :]
        both = inside[:, None] & (g < groups)
        o = tl.load(offset + row * groups + g, mask=both, other=0).to(tl.float32)
        for piece in tl.static_range(GROUP // 32):
            of_piece = added + 1 + pieces + g * (GROUP // 32) + piece
            sums += o * tl.load(of_piece, mask=g < groups, other=0)
    y = finished(y + tl.sum(sums, 1), n, inside, None, bias, ACTIVATION, residual)
    tl.store(out + n, y.to(out.dtype.element_ty), mask=inside)
