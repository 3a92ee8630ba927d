"""ALiBi: attention biased by distance (arXiv 2108.12409)."""

from __future__ import annotations

from typing import Any

import numpy as np


def alibi_slopes(heads: int) -> np.ndarray:
    """The slope of each head, float32 `(heads,)`.

    For a power of two n these are 2^(-8/n), 2^(-16/n), ..., 2^-8. Otherwise the paper's rule: those
    of the next lower power of two n, then every second one of those of 2n, from the first on.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = _geometric(power)
    if power < heads:
        slopes = np.concatenate([slopes, _geometric(2 * power)[::2][: heads - power]])
    return slopes.astype(np.float32)


def alibi_bias(slopes: Any, distance: Any) -> Any:
    """What is added to scores, of numpy, torch or PopXL.

    Args:
        slopes: of heads, which broadcast to the scores.
        distance: from a query to a key, 0 or less behind it; where a key is ahead, the score is
            masked besides.
    """
    return slopes * distance


def _geometric(heads: int) -> np.ndarray:
    return 2.0 ** (-8.0 / heads * np.arange(1, heads + 1))
