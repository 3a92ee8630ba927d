"""Ops that work element by element, write the result to their first operand and return that.

A view made by `reshape_`, `transpose_`, `slice_` or `concat_` may be given: what it shares is
written to.
"""

from __future__ import annotations

from typing import Any

from popxl.ops._build import (
    broadcast,
    emit_inplace,
    need_float,
    need_number,
    operands,
    tensor_operand,
)
from popxl.ops.elementwise import _factor, _fits_inplace
from popxl.tensor import Tensor


def _float_unary_(kind: str, t: Tensor) -> Tensor:
    need_float(f"{kind}_", tensor_operand(f"{kind}_", t))
    return emit_inplace(kind, [t])


def exp_(t: Tensor) -> Tensor:
    """`t = exp(t)`."""
    return _float_unary_("exp", t)


def gelu_(t: Tensor) -> Tensor:
    """`t = gelu(t)`."""
    return _float_unary_("gelu", t)


def geluerf_(t: Tensor) -> Tensor:
    """`t = geluerf(t)`."""
    return _float_unary_("geluerf", t)


def swish_(t: Tensor) -> Tensor:
    """`t = swish(t)`."""
    return _float_unary_("swish", t)


def relu_(t: Tensor) -> Tensor:
    """`t = relu(t)`."""
    need_number("relu_", tensor_operand("relu_", t))
    return emit_inplace("relu", [t])


def scaled_add_(X: Tensor, Y: Tensor, a: Any = 1.0, b: Any = 1.0) -> Tensor:  # noqa: N803
    """`X = a X + b Y`; `a` and `b` are numbers or scalar tensors.

    Raises:
        ValueError: where the sum is not of the shape of `X`.
    """
    tensor_operand("scaled_add_", X)
    left, right = operands("scaled_add_", X, Y)
    need_number("scaled_add_", left)
    factors = [_factor("scaled_add_", left, f) for f in (a, b)]
    _fits_inplace("scaled_add_", left, broadcast("scaled_add_", left, right))
    return emit_inplace("scaled_add", [left, right, *factors])
