"""A layout over an IPU's tiles, which has no effect here."""

import popxl


def linear_layout(t: popxl.Tensor, bs: int = 1) -> popxl.Tensor:
    """`t` as it is."""
    return popxl.ops.identity(t)
