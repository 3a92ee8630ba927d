"""Rewrites that PopART makes before a program runs."""

from __future__ import annotations

import popxl

_LEVELS = ("no_patterns", "minimal", "default", "all")


def apply_pre_alias_patterns(ir: popxl.Ir, level: str = "default") -> None:
    """Accepted and without effect: no op of this package waits for a pattern to replace it.

    Raises:
        ValueError: for an unknown `level`.
    """
    if level not in _LEVELS:
        raise ValueError(f"level is one of {', '.join(_LEVELS)}, got {level!r}")
