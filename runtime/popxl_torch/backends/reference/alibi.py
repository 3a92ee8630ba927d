"""ALiBi's bias of attention scores (arXiv 2108.12409)."""

from __future__ import annotations

import torch


def alibi(slopes: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """Slope times distance, minus infinity where a key is ahead of its query.

    Args:
        slopes: `(..., heads, 1, 1)`.
        distance: from a query to a key, 0 or less behind it, `(..., tokens, keys)`.
    """
    return slopes * distance.masked_fill(distance > 0, -torch.inf)
