"""The custom op of the user guide, in PopXL ops instead of C++."""

from __future__ import annotations

import popxl
from popxl import ops


def leaky_relu(x: popxl.Tensor, alpha: float = 0.01) -> popxl.Tensor:
    """`x` where it is positive, else `alpha * x`."""
    return ops.relu(x) - ops.relu(-x) * alpha
