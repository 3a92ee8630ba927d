"""Triton functions: numbers of 8 and 4 bits, out of the words of `popxl_shared`.

Nothing else in Triton takes words apart. Of one row the numbers become floats without a conversion,
which is slow: their bits are put into the mantissa of 1.0, which makes `1 + number / 2**p`; what
the ones add up to is taken off the sum. The bits of 1.0 are read from memory: an instruction takes
one constant, and that is the mask. With 4 bits a multiprocessor's instructions are what is short,
next to memory; so inputs are made floats, and multiplied by `2**p`, once for all programs, and a
shift serves up to three numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def four_numbers(words):
    """int16 `(..., n)` of four numbers each, the first in the highest bits, as `(..., 4 * n)`."""
    wide = words.to(tl.int32)
    even = tl.join((wide >> 12) & 15, (wide >> 4) & 15)  # numbers 0 and 2
    odd = tl.join((wide >> 8) & 15, wide & 15)
    return tl.join(even, odd)


@triton.jit
def factors(number, COARSE: tl.constexpr):
    """Of the inputs of a word's eight numbers, so that each comes into its float as 16th parts."""
    if COARSE:
        small = tl.where((number == 2) | (number == 5), 16.0, 1.0)
        large = tl.where((number == 3) | (number == 6), 256.0, small)
        return tl.where(number == 0, 128.0, tl.where(number == 7, 8.0, large))
    else:  # noqa: RET505 - decided when it is compiled
        return tl.where((number == 0) | (number == 2) | (number == 6), 16.0, 1.0)


@triton.jit
def eight_times(words, x0, x1, x2, x3, x4, x5, x6, x7, one, COARSE: tl.constexpr):
    """The sum of the eight numbers of words, each times an input that has its factor.

    A word of 32 bits is two of 16, whose first number is in their highest bits. Numbers come into
    the upper 8 bits of the mantissa: five as 1 + number / 16, three as 1 + number / 256. `COARSE`,
    which is for inputs of 16 bits, has them in the upper 12 and needs two shifts, not five; what
    sums are rounded by is some 2**-15 of such an input, which has itself been rounded by 2**-9 or
    2**-12.
    """
    if COARSE:
        part = one_and(words, 0, 0xF0000, one) * x7
        part += one_and(words, 0, 0xF000, one) * x0
        part += one_and(words, 11, 0x780000, one) * x1
        part += one_and(words, 11, 0x78000, one) * x2
        part += one_and(words, 11, 0x7800, one) * x3
        part += one_and(words, -9, 0x780000, one) * x4
        part += one_and(words, -9, 0x78000, one) * x5
        part += one_and(words, -9, 0x7800, one) * x6
    else:
        part = one_and(words, 3, 0x780000, one) * x7
        part += one_and(words, 3, 0x78000, one) * x0
        part += one_and(words, 11, 0x780000, one) * x1
        part += one_and(words, 11, 0x78000, one) * x2
        part += one_and(words, -5, 0x780000, one) * x5
        part += one_and(words, -5, 0x78000, one) * x6
        part += one_and(words, 19, 0x780000, one) * x3
        part += one_and(words, -9, 0x780000, one) * x4
    return part


@triton.jit
def four_times(words, x0, x1, x2, x3, one):
    """The sum of the four int8 of words, each times an input.

    With the sign bit turned, which 1.5 in the place of 1.0 does, a byte is its number + 128, and in
    the upper 8 bits of the mantissa 1 + (number + 128) / 256.
    """
    sums = one_and(words, 15, 0x7F8000, one) * x0
    sums += one_and(words, 7, 0x7F8000, one) * x1
    sums += one_and(words, -1, 0x7F8000, one) * x2
    sums += one_and(words, -9, 0x7F8000, one) * x3
    return sums


@triton.jit
def one_and(words, SHIFT: tl.constexpr, MASK: tl.constexpr, one):
    """Floats whose bits are those of `one` and, under the mask, those of the words, shifted left.

    Where a bit is in both, it is in none.
    """
    if SHIFT >= 0:  # noqa: SIM108 - decided when it is compiled
        moved = words << SHIFT
    else:
        moved = words >> -SHIFT
    return ((moved & MASK) ^ one).to(tl.float32, bitcast=True)
