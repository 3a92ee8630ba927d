"""Ops that work element by element, with numpy's broadcasting.

Those whose names end in `_` write the result to their first operand and return that. A view made by
`reshape_`, `transpose_`, `slice_` or `concat_` may be given: what it shares is written to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from popxl import dtypes
from popxl.ops._build import (
    broadcast,
    emit_inplace,
    emit_one,
    need_float,
    need_number,
    operands,
    scalar_or_tensor,
    tensor_operand,
    whole,
)
from popxl.ops.shape import reshape
from popxl.tensor import Tensor, TensorSpec


class Unary(Protocol):
    """An op of one tensor."""

    def __call__(self, t: Tensor) -> Tensor: ...


class Binary(Protocol):
    """An op of two operands, of which at least one is a tensor, the other a tensor or number."""

    def __call__(self, lhs: Any, rhs: Any) -> Tensor: ...


Need = Callable[[str, Tensor], None]
"""Raises TypeError where an op of that name does not take the tensor's dtype."""


def named(op: Any, name: str, doc: str) -> Any:
    """`op` under the name, and with the docstring, that PopXL's users know."""
    op.__name__ = op.__qualname__ = name
    op.__doc__ = doc
    return op


def _any(kind: str, t: Tensor) -> None:
    """Every dtype is taken."""


def _unary(kind: str, doc: str, need: Need, dtype: dtypes.dtype | None = None) -> Unary:
    """The op `kind`; `dtype` is that of the result, where it is not the tensor's."""

    def op(t: Tensor) -> Tensor:
        need(kind, tensor_operand(kind, t))
        return _emit_unary(kind, t, dtype)

    return named(op, kind, doc)


def _inplace(kind: str, need: Need) -> Unary:
    """The op that writes the result of `kind` to its operand, and returns that."""
    name = f"{kind}_"

    def op(t: Tensor) -> Tensor:
        need(name, tensor_operand(name, t))
        return emit_inplace(kind, [t])

    return named(op, name, f"`t = {kind}(t)`.")


def _binary(kind: str, doc: str) -> Binary:
    def op(lhs: Any, rhs: Any) -> Tensor:
        return _emit_binary(kind, lhs, rhs)

    return named(op, kind, doc)


def _emit_unary(
    kind: str, t: Tensor, dtype: dtypes.dtype | None = None, **attributes: Any
) -> Tensor:
    return emit_one(kind, [t], TensorSpec(t.shape, dtype or t.dtype, t.meta_shape), **attributes)


def _emit_binary(
    kind: str, lhs: Any, rhs: Any, dtype: dtypes.dtype | None = None, numbers: bool = True
) -> Tensor:
    left, right = operands(kind, lhs, rhs)
    if numbers:
        need_number(kind, left)
    spec = TensorSpec(broadcast(kind, left, right), dtype or left.dtype, whole(kind, left, right))
    return emit_one(kind, [left, right], spec)


def _fits_inplace(kind: str, t: Tensor, shape: tuple[int, ...]) -> None:
    if shape != t.shape:
        raise ValueError(f"{kind}: the result is {shape}, but {t.name} to be written is {t.shape}")


abs = _unary("abs", "Absolute values.", need_number)
negate = _unary("negate", "`-t`.", need_number)
sign = _unary("sign", "-1, 0 or 1.", need_number)
ceil = _unary("ceil", "The next integer upwards, in the same dtype.", need_number)
floor = _unary("floor", "The next integer downwards, in the same dtype.", need_number)
cos = _unary("cos", "Cosine of radians.", need_float)
sin = _unary("sin", "Sine of radians.", need_float)
exp = _unary("exp", "e to the power of `t`.", need_float)
log = _unary("log", "Natural logarithm.", need_float)
log2 = _unary("log2", "Logarithm to base 2.", need_float)
sqrt = _unary("sqrt", "Square root.", need_float)
tanh = _unary("tanh", "Hyperbolic tangent.", need_float)
relu = _unary("relu", "The larger of `t` and 0.", need_number)
gelu = _unary(
    "gelu",
    "GELU in its tanh form (arXiv 1606.08415): 0.5 t (1 + tanh(sqrt(2/pi) (t + 0.044715 t^3))).",
    need_float,
)
geluerf = _unary("geluerf", "GELU itself (as above): 0.5 t (1 + erf(t / sqrt(2))).", need_float)
swish = _unary("swish", "`t` times its logistic sigmoid.", need_float)
isfinite = _unary("isfinite", "bool: neither infinite nor NaN.", _any, dtypes.bool)
isinf = _unary("isinf", "bool: positive or negative infinity.", _any, dtypes.bool)
isnan = _unary("isnan", "bool: not a number.", _any, dtypes.bool)
logical_not = _unary("logical_not", "bool: not; a number is true but for 0.", _any, dtypes.bool)

exp_ = _inplace("exp", need_float)
gelu_ = _inplace("gelu", need_float)
geluerf_ = _inplace("geluerf", need_float)
swish_ = _inplace("swish", need_float)
relu_ = _inplace("relu", need_number)

add = _binary("add", "`lhs + rhs`.")
sub = _binary("sub", "`lhs - rhs`.")
mul = _binary("mul", "`lhs * rhs`.")
div = _binary("div", "`lhs / rhs`; integers are divided towards zero.")
fmod = _binary("fmod", "The remainder of `lhs / rhs`, with the sign of `lhs`.")


def cast(t: Tensor, data_type: dtypes.dtype) -> Tensor:
    """`t` in another dtype."""
    return _emit_unary("cast", tensor_operand("cast", t), dtypes.dtype.as_dtype(data_type))


def clip(t: Tensor, min: float = float("-inf"), max: float = float("inf")) -> Tensor:
    """`t` with values below `min` or above `max` replaced by these."""
    if min > max:
        raise ValueError(f"clip: min {min} is above max {max}")
    need_number("clip", tensor_operand("clip", t))
    return _emit_unary("clip", t, min=min, max=max)


def add_(lhs: Tensor, rhs: Any) -> Tensor:
    """`lhs += rhs`."""
    tensor_operand("add_", lhs)
    lhs, rhs = operands("add_", lhs, rhs)
    need_number("add_", lhs)
    _fits_inplace("add_", lhs, broadcast("add_", lhs, rhs))
    return emit_inplace("add", [lhs, rhs])


def pow(t: Tensor, e: Any) -> Tensor:
    """`t` to the power of `e`, a number or tensor."""
    return _emit_binary("pow", tensor_operand("pow", t), e)


def equal(lhs: Any, rhs: Any) -> Tensor:
    """bool: `lhs == rhs`."""
    return _emit_binary("equal", lhs, rhs, dtypes.bool, numbers=False)


def greater(input: Any, other: Any) -> Tensor:
    """bool: `input > other`."""
    return _emit_binary("greater", input, other, dtypes.bool)


def logical_and(lhs: Any, rhs: Any) -> Tensor:
    """bool: both; numbers count as true where they are not 0."""
    return _logical("logical_and", lhs, rhs)


def logical_or(lhs: Any, rhs: Any) -> Tensor:
    """bool: either; numbers count as true where they are not 0."""
    return _logical("logical_or", lhs, rhs)


def _logical(kind: str, lhs: Any, rhs: Any) -> Tensor:
    return _emit_binary(kind, _as_bool(lhs), _as_bool(rhs), numbers=False)


def _as_bool(value: Any) -> Any:
    """A tensor of numbers as one of bool; anything else as it is."""
    if isinstance(value, Tensor) and value.dtype != dtypes.bool:
        return cast(value, dtypes.bool)
    return value


def maximum(*ts: Tensor) -> Tensor:
    """The largest of the tensors, element by element."""
    tensors = operands("maximum", *ts)
    need_number("maximum", tensors[0])
    return emit_one(
        "maximum", tensors, TensorSpec(broadcast("maximum", *tensors), tensors[0].dtype)
    )


def where(condition: Tensor, lhs: Any, rhs: Any) -> Tensor:
    """`lhs` where the condition holds (a number does where it is not 0), else `rhs`."""
    condition = _as_bool(tensor_operand("where", condition))
    lhs, rhs = operands("where", lhs, rhs)
    shape = broadcast("where", condition, lhs, rhs)
    return emit_one("where", [condition, lhs, rhs], TensorSpec(shape, lhs.dtype))


def scaled_add(X: Tensor, Y: Tensor, a: Any = 1.0, b: Any = 1.0) -> Tensor:  # noqa: N803
    """`a X + b Y`; `a` and `b` are numbers or scalar tensors."""
    inputs, shape = _scaled("scaled_add", X, Y, a, b)
    return emit_one("scaled_add", inputs, TensorSpec(shape, inputs[0].dtype))


def scaled_add_(X: Tensor, Y: Tensor, a: Any = 1.0, b: Any = 1.0) -> Tensor:  # noqa: N803
    """`X = a X + b Y`; `a` and `b` are numbers or scalar tensors.

    Raises:
        ValueError: where the sum is not of the shape of `X`.
    """
    inputs, shape = _scaled("scaled_add_", tensor_operand("scaled_add_", X), Y, a, b)
    _fits_inplace("scaled_add_", inputs[0], shape)
    return emit_inplace("scaled_add", inputs)


def _scaled(kind: str, x: Any, y: Any, a: Any, b: Any) -> tuple[list[Tensor], tuple[int, ...]]:
    """The op's inputs, and the shape of their sum."""
    left, right = operands(kind, x, y)
    need_number(kind, left)
    factors = [_factor(kind, left, f) for f in (a, b)]
    return [left, right, *factors], broadcast(kind, left, right)


def _factor(kind: str, like: Tensor, value: Any) -> Tensor:
    factor = scalar_or_tensor(kind, like, value)
    if factor.nelms != 1:
        raise ValueError(f"{kind}: factor {factor.name} must be a scalar, is {factor.shape}")
    return factor if factor.shape == () else reshape(factor, ())


def increment_mod(t: Tensor, increment: float, modulus: float) -> Tensor:
    """`(t + increment) mod modulus`."""
    need_number("increment_mod", tensor_operand("increment_mod", t))
    return _emit_unary("increment_mod", t, **_steps("increment_mod", increment, modulus))


def increment_mod_(t: Tensor, increment: float, modulus: float) -> Tensor:
    """`t = (t + increment) mod modulus`."""
    need_number("increment_mod_", tensor_operand("increment_mod_", t))
    return emit_inplace("increment_mod", [t], **_steps("increment_mod_", increment, modulus))


def _steps(kind: str, increment: float, modulus: float) -> dict[str, Any]:
    for what, value in (("increment", increment), ("modulus", modulus)):
        if not isinstance(value, int | float | np.number):
            raise TypeError(f"{kind}: the {what} must be a number, got {value!r}")
    if modulus == 0:
        raise ValueError(f"{kind}: the modulus must not be 0")
    return {"increment": increment, "modulus": modulus}
