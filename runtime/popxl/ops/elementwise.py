"""Ops that work element by element, with numpy's broadcasting."""

from __future__ import annotations

from typing import Any

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


def _unary(kind: str, t: Tensor, dtype: dtypes.dtype | None = None, **attributes: Any) -> Tensor:
    t = tensor_operand(kind, t)
    spec = TensorSpec(t.shape, dtype or t.dtype, t.meta_shape)
    return emit_one(kind, [t], spec, **attributes)


def _number_unary(kind: str, t: Tensor, **attributes: Any) -> Tensor:
    need_number(kind, tensor_operand(kind, t))
    return _unary(kind, t, **attributes)


def _float_unary(kind: str, t: Tensor) -> Tensor:
    need_float(kind, tensor_operand(kind, t))
    return _unary(kind, t)


def _binary(
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


def abs(t: Tensor) -> Tensor:
    """Absolute values."""
    return _number_unary("abs", t)


def negate(t: Tensor) -> Tensor:
    """`-t`."""
    return _number_unary("negate", t)


def sign(t: Tensor) -> Tensor:
    """-1, 0 or 1."""
    return _number_unary("sign", t)


def ceil(t: Tensor) -> Tensor:
    """The next integer upwards, in the same dtype."""
    return _number_unary("ceil", t)


def floor(t: Tensor) -> Tensor:
    """The next integer downwards, in the same dtype."""
    return _number_unary("floor", t)


def cos(t: Tensor) -> Tensor:
    """Cosine of radians."""
    return _float_unary("cos", t)


def sin(t: Tensor) -> Tensor:
    """Sine of radians."""
    return _float_unary("sin", t)


def exp(t: Tensor) -> Tensor:
    """e to the power of `t`."""
    return _float_unary("exp", t)


def log(t: Tensor) -> Tensor:
    """Natural logarithm."""
    return _float_unary("log", t)


def log2(t: Tensor) -> Tensor:
    """Logarithm to base 2."""
    return _float_unary("log2", t)


def sqrt(t: Tensor) -> Tensor:
    """Square root."""
    return _float_unary("sqrt", t)


def tanh(t: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return _float_unary("tanh", t)


def relu(t: Tensor) -> Tensor:
    """The larger of `t` and 0."""
    return _number_unary("relu", t)


def gelu(t: Tensor) -> Tensor:
    """GELU in its tanh form (arXiv 1606.08415): 0.5 t (1 + tanh(sqrt(2/pi) (t + 0.044715 t^3)))."""
    return _float_unary("gelu", t)


def geluerf(t: Tensor) -> Tensor:
    """GELU itself (arXiv 1606.08415): 0.5 t (1 + erf(t / sqrt(2)))."""
    return _float_unary("geluerf", t)


def swish(t: Tensor) -> Tensor:
    """`t` times its logistic sigmoid."""
    return _float_unary("swish", t)


def isfinite(t: Tensor) -> Tensor:
    """bool: neither infinite nor NaN."""
    return _unary("isfinite", t, dtypes.bool)


def isinf(t: Tensor) -> Tensor:
    """bool: positive or negative infinity."""
    return _unary("isinf", t, dtypes.bool)


def isnan(t: Tensor) -> Tensor:
    """bool: not a number."""
    return _unary("isnan", t, dtypes.bool)


def cast(t: Tensor, data_type: dtypes.dtype) -> Tensor:
    """`t` in another dtype."""
    return _unary("cast", t, dtypes.dtype.as_dtype(data_type))


def clip(t: Tensor, min: float = float("-inf"), max: float = float("inf")) -> Tensor:
    """`t` with values below `min` or above `max` replaced by these."""
    if min > max:
        raise ValueError(f"clip: min {min} is above max {max}")
    return _number_unary("clip", t, min=min, max=max)


def add(lhs: Any, rhs: Any) -> Tensor:
    """`lhs + rhs`."""
    return _binary("add", lhs, rhs)


def add_(lhs: Tensor, rhs: Any) -> Tensor:
    """`lhs += rhs`."""
    tensor_operand("add_", lhs)
    lhs, rhs = operands("add_", lhs, rhs)
    need_number("add_", lhs)
    _fits_inplace("add_", lhs, broadcast("add_", lhs, rhs))
    return emit_inplace("add", [lhs, rhs])


def sub(lhs: Any, rhs: Any) -> Tensor:
    """`lhs - rhs`."""
    return _binary("sub", lhs, rhs)


def mul(lhs: Any, rhs: Any) -> Tensor:
    """`lhs * rhs`."""
    return _binary("mul", lhs, rhs)


def div(lhs: Any, rhs: Any) -> Tensor:
    """`lhs / rhs`; integers are divided towards zero."""
    return _binary("div", lhs, rhs)


def fmod(lhs: Any, rhs: Any) -> Tensor:
    """The remainder of `lhs / rhs`, with the sign of `lhs`."""
    return _binary("fmod", lhs, rhs)


def pow(t: Tensor, e: Any) -> Tensor:
    """`t` to the power of `e`, a number or tensor."""
    return _binary("pow", tensor_operand("pow", t), e)


def equal(lhs: Any, rhs: Any) -> Tensor:
    """bool: `lhs == rhs`."""
    return _binary("equal", lhs, rhs, dtypes.bool, numbers=False)


def greater(input: Any, other: Any) -> Tensor:
    """bool: `input > other`."""
    return _binary("greater", input, other, dtypes.bool)


def logical_and(lhs: Any, rhs: Any) -> Tensor:
    """bool: both; numbers count as true where they are not 0."""
    return _logical("logical_and", lhs, rhs)


def logical_or(lhs: Any, rhs: Any) -> Tensor:
    """bool: either; numbers count as true where they are not 0."""
    return _logical("logical_or", lhs, rhs)


def logical_not(t: Tensor) -> Tensor:
    """bool: not; numbers count as true where they are not 0."""
    return _unary("logical_not", t, dtypes.bool)


def _logical(kind: str, lhs: Any, rhs: Any) -> Tensor:
    return _binary(kind, _as_bool(lhs), _as_bool(rhs), numbers=False)


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
    left, right = operands("scaled_add", X, Y)
    need_number("scaled_add", left)
    factors = [_factor("scaled_add", left, f) for f in (a, b)]
    shape = broadcast("scaled_add", left, right)
    return emit_one("scaled_add", [left, right, *factors], TensorSpec(shape, left.dtype))


def _factor(kind: str, like: Tensor, value: Any) -> Tensor:
    factor = scalar_or_tensor(kind, like, value)
    if factor.nelms != 1:
        raise ValueError(f"{kind}: factor {factor.name} must be a scalar, is {factor.shape}")
    return factor if factor.shape == () else reshape(factor, ())


def increment_mod(t: Tensor, increment: float, modulus: float) -> Tensor:
    """`(t + increment) mod modulus`."""
    return _number_unary("increment_mod", t, **_steps("increment_mod", increment, modulus))


def increment_mod_(t: Tensor, increment: float, modulus: float) -> Tensor:
    """`t = (t + increment) mod modulus`."""
    need_number("increment_mod_", tensor_operand("increment_mod_", t))
    return emit_inplace("increment_mod", [t], **_steps("increment_mod_", increment, modulus))


def _steps(kind: str, increment: float, modulus: float) -> dict[str, float]:
    for what, value in (("increment", increment), ("modulus", modulus)):
        if not isinstance(value, int | float | np.number):
            raise TypeError(f"{kind}: the {what} must be a number, got {value!r}")
    if modulus == 0:
        raise ValueError(f"{kind}: the modulus must not be 0")
    return {"increment": increment, "modulus": modulus}
