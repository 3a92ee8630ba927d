"""Products with a sparse matrix that never changes; computed with as a dense one here."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl


def random_sparse(dense: np.ndarray, density: float = 0.5) -> np.ndarray:
    """`dense`, with all but a share of `density` of its elements set to 0 where it lies.

    At least one element is kept.
    """
    zeros = np.random.random(dense.shape) >= density
    if zeros.all():
        zeros.flat[0] = False
    dense[zeros] = 0
    return dense


def dense_const_sparse_matmul(lhs: popxl.Tensor, rhs: Any, output_cols: int) -> popxl.Tensor:
    """The product of `lhs`, `(..., rows)`, and a constant sparse matrix `(rows, output_cols)`.

    Args:
        rhs: a matrix of `scipy.sparse`.
    """
    matrix = np.zeros((rhs.shape[0], output_cols), lhs.dtype.as_numpy())
    matrix[:, : rhs.shape[1]] = rhs.astype(np.float32).toarray()
    return lhs @ popxl.constant(matrix, lhs.dtype)
