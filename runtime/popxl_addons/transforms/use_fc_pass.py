"""Whether matmuls keep a transposed copy of their weights for a backward pass.

Without effect: a program here is forward only and keeps no such copy.
"""

from __future__ import annotations

import popxl


def disable_fc_pass(ir: popxl.Ir) -> None:
    """Accepted and without effect."""


def enable_fc_pass(ir: popxl.Ir) -> None:
    """Accepted and without effect."""
