"""8 bits an element, and a scale for each row: an element is `number * scale`."""

from __future__ import annotations

from typing import Any

import numpy as np

from popxl_shared import QuantisationError

LARGEST = 127
"""The largest number in use; -128 has no counterpart."""


def quantised(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 `(rows, columns)` and the float32 scale of each row: its largest magnitude / 127.

    Args:
        rows: float32 `(rows, columns)`.

    Raises:
        QuantisationError: where values are not finite.
    """
    largest = np.maximum(rows.max(-1), -rows.min(-1))
    if not np.isfinite(largest).all():
        raise QuantisationError("values are not finite")
    scale = largest / np.float32(LARGEST)
    inverse = np.divide(LARGEST, largest, out=np.zeros_like(largest), where=largest > 0)
    numbers = rows * inverse[:, np.newaxis]
    return np.rint(numbers, out=numbers).astype(np.int8), scale


def dequantised(numbers: Any, scale: Any) -> Any:
    """The elements of numbers `(*rows, columns)` with scales `(*rows,)`, of numpy or torch."""
    return numbers * scale[..., None]
