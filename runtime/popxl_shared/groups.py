"""4 bits an element, in groups with a scale and an offset: an element is `number * scale + offset`.

The groups are neighbours in a row, as FlexGen has them (arXiv 2303.06865, section 5). Numbers are 0
to 15, and four of them make a 16-bit word, the first in its highest bits. Words lie as uint16
`(*rows, groups, group_size / 4)`, scales and offsets as float16 `(*rows, groups, 1)`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from popxl_shared import QuantisationError

BITS, PER_WORD = 4, 4
"""Of a number; numbers in a word."""

LARGEST = 2**BITS - 1
"""The largest number."""

SHIFTS = range(BITS * (PER_WORD - 1), -BITS, -BITS)
"""Of a word's numbers, the first one's first: the bits below it."""

ROUNDS = 4
"""Of fitting scale and offset: another one lessens the error by less than a hundredth."""


def quantised(
    rows: np.ndarray, group_size: int, rounds: int = ROUNDS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words, scales and offsets of rows.

    Scale and offset begin as those of a group's extremes. Then numbers are rounded and a line is
    laid through the elements over their numbers by least squares, so many rounds: the error falls
    with each.

    Args:
        rows: float32 `(*rows, columns)`.
        group_size: a multiple of 4 that divides the columns.

    Raises:
        QuantisationError: where values are not finite, or too large for float16.
    """
    groups = rows.reshape(*rows.shape[:-1], -1, group_size)
    low = groups.min(-1, keepdims=True)
    scale, offset = _halves((groups.max(-1, keepdims=True) - low) / LARGEST, low)
    numbers = _numbers(groups, scale, offset)
    for _ in range(rounds):
        scale, offset = _halves(*_line(groups, numbers, low))
        numbers = _numbers(groups, scale, offset)
    return packed(numbers), scale, offset


def dequantised(words: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The elements `(*rows, columns)`, computed in the type of the scales and offsets."""
    numbers = unpacked(words).astype(scale.dtype)
    return (numbers * scale + offset).reshape(*words.shape[:-2], -1)


def shapes(rows: int, columns: int, group_size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Those of the words, and of the scales and offsets."""
    count = columns // group_size
    return (rows, count, group_size // PER_WORD), (rows, count, 1)


def packed(numbers: np.ndarray) -> np.ndarray:
    """Words of numbers: a quarter of the last axis."""
    four = np.ascontiguousarray(numbers, np.uint8).view("<u4")  # byte i is number i
    words = np.zeros_like(four)
    for i, shift in enumerate(SHIFTS):
        words |= (four >> 8 * i & LARGEST) << shift
    return words.astype(np.uint16)


_SHIFTS = np.array(SHIFTS, np.uint16)


def unpacked(words: Any, shifts: Any = _SHIFTS) -> Any:
    """The numbers of words: four times the last axis, in the type of the words.

    Args:
        words: of numpy, or integers of torch.
        shifts: `SHIFTS` as an array of the words' kind.
    """
    return (words[..., None] >> shifts & LARGEST).reshape(*words.shape[:-1], -1)


def _halves(scale: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        halves = scale.astype(np.float16), offset.astype(np.float16)
    if not all(np.isfinite(half).all() for half in halves):
        raise QuantisationError("values are not finite or too large for float16")
    return halves


def _numbers(groups: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The nearest numbers, as floats; 0 where the scale is 0."""
    wide = scale.astype(np.float32)
    inverse = np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)
    numbers = groups - offset.astype(np.float32)
    numbers *= inverse
    np.rint(numbers, out=numbers)
    return np.clip(numbers, 0, LARGEST, out=numbers)


def _line(
    groups: np.ndarray, numbers: np.ndarray, low: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offset of the line through elements over numbers, by least squares."""
    elements, size = groups - low, groups.shape[-1]  # from 0 on: the sums below lose no digits
    number, element = (t.mean(-1, keepdims=True) for t in (numbers, elements))
    spread = _dot(numbers, numbers) - size * number * number
    slope = _dot(numbers, elements) - size * number * element
    slope = np.divide(slope, spread, out=np.zeros_like(slope), where=spread > 0)
    return slope, element - slope * number + low


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("...i,...i->...", a, b)[..., np.newaxis]
