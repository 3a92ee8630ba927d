"""Seeds: pairs of uint32 that stand for one 64-bit number, the high half first."""

from __future__ import annotations

import numpy as np

MAX_UINT64 = 2**64 - 1
_LOW = 2**32 - 1


def create_seeds(
    seed: int,
    offset: int = 0,
    batches_per_step: int = 1,
    gradient_accumulation_factor: int = 1,
    replicas: int = 1,
) -> np.ndarray:
    """Seeds drawn from a parent seed by numpy's default generator, as PopXL draws them.

    Returns:
        uint32 `(batches_per_step, gradient_accumulation_factor, replicas, 2)`, without the axes of
        size 1.
    """
    shape = (batches_per_step, gradient_accumulation_factor, replicas)
    drawn = np.random.default_rng(seed + offset).integers(
        0, 2**64 - 1, size=shape, dtype=np.uint64, endpoint=True
    )
    pairs = np.stack([drawn >> np.uint64(32), drawn & np.uint64(_LOW)], axis=-1)
    return pairs.astype(np.uint32).squeeze()


def uint64_to_two_uint32(num: int) -> tuple[int, int]:
    """The high and the low 32 bits of a number.

    Raises:
        ValueError: where it is negative or longer than 64 bits.
    """
    if not 0 <= num < 2**64:
        raise ValueError(f"uint64_to_two_uint32: {num} is outside 0 to 2**64 - 1")
    return num >> 32, num & _LOW


def two_uint32_to_uint64(a: int, b: int) -> int:
    """The number whose high 32 bits are `a` and whose low 32 bits are `b`.

    Raises:
        ValueError: where one of them is negative or longer than 32 bits.
    """
    for part in (a, b):
        if not 0 <= part <= _LOW:
            raise ValueError(f"two_uint32_to_uint64: {part} is outside 0 to 2**32 - 1")
    return int(a) << 32 | int(b)
