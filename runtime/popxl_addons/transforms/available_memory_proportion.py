"""The share of an IPU's memory that convolutions and matmuls may use for temporary values."""

from __future__ import annotations

from collections.abc import Iterable

import popxl


def set_available_memory_proportion_by_ipu(ir: popxl.Ir, proportions: Iterable[float]) -> None:
    """Accepted and without effect on what `ir` computes.

    Raises:
        ValueError: for a proportion outside 0 to 1.
    """
    _check(proportions)


def set_graph_available_memory_proportion_by_ipu(
    graph: popxl.Graph, proportions: Iterable[float]
) -> None:
    """Accepted and without effect on what `graph` computes.

    Raises:
        ValueError: for a proportion outside 0 to 1.
    """
    _check(proportions)


def _check(proportions: Iterable[float]) -> None:
    for proportion in proportions:
        if not 0 <= proportion <= 1:
            raise ValueError(f"a memory proportion lies in 0 to 1, got {proportion}")
