"""Writing to variables.

Each op writes to its first operand and returns it. What is added may be of another dtype; sums are
made in float32 at least and rounded to the dtype of the operand (integers are cut towards zero).
Factors are numbers or scalar tensors, and nothing is broadcast: another factor, or shapes that
differ, raise a ValueError.
"""

# ruff: noqa: F401 - optimisers are named here, as in PopXL

from __future__ import annotations

from typing import Any

import numpy as np

from popxl.ops._build import (
    axis_of,
    emit_inplace,
    need_int,
    need_number,
    same_dtype,
    tensor_operand,
)
from popxl.ops.optimisers import adam_updater, adam_var_update, adamax_updater, lamb_updater
from popxl.ops.shape import reshape
from popxl.tensor import Tensor


def copy_var_update_(t: Tensor, X: Tensor) -> Tensor:  # noqa: N803
    """Overwrite `t` with `X`."""
    tensor_operand("copy_var_update_", t)
    same_dtype("copy_var_update_", t, tensor_operand("copy_var_update_", X))
    _same_shape("copy_var_update_", t, X)
    return emit_inplace("copy", [t, X])


def accumulate_(t: Tensor, X: Tensor, f: float | Tensor | None = None) -> Tensor:  # noqa: N803
    """`t = t + f X`; `f` is 1 where None."""
    return _accumulate("accumulate_", "add", t, X, f)


def accumulate_square_(t: Tensor, X: Tensor, f: float | Tensor = 1.0) -> Tensor:  # noqa: N803
    """`t = t + f X^2`."""
    return _accumulate("accumulate_square_", "add_square", t, X, f)


def accumulate_mean_(t: Tensor, X: Tensor, step: float | Tensor) -> Tensor:  # noqa: N803
    """`t = (step t + X) / (step + 1)`: the mean, where `t` is that of `step` values before."""
    return _accumulate("accumulate_mean_", "mean", t, X, step)


def accumulate_moving_average_(t: Tensor, X: Tensor, f: float | Tensor) -> Tensor:  # noqa: N803
    """`t = f t + (1 - f) X`."""
    return _accumulate("accumulate_moving_average_", "moving_average", t, X, f)


def accumulate_moving_average_square_(
    t: Tensor,
    X: Tensor,  # noqa: N803
    f: float | Tensor,
) -> Tensor:
    """`t = f t + (1 - f) X^2`."""
    return _accumulate("accumulate_moving_average_square_", "moving_average_square", t, X, f)


def accumulator_scale_(t: Tensor, f: float | Tensor) -> Tensor:
    """`t = f t`; the number 0 gives zeros, whatever `t` holds."""
    need_number("accumulator_scale_", tensor_operand("accumulator_scale_", t))
    tensors, number = _factor("accumulator_scale_", f)
    if number is None and not tensors:
        raise TypeError("accumulator_scale_: the factor must be a number or a tensor, got None")
    return emit_inplace("accumulator_scale", [t, *tensors], factor=number)


def accumulator_zero_(t: Tensor) -> Tensor:
    """Overwrite `t` with zeros."""
    return accumulator_scale_(t, 0.0)


def sparse_accumulate_(
    t: Tensor,
    X: Tensor,  # noqa: N803
    indices: Tensor,
    axis: int = 0,
    f: float | Tensor | None = None,
    W: Tensor | None = None,  # noqa: N803
) -> Tensor:
    """Add `f X` to the slices of `t` at `indices` along `axis`; an index may come several times.

    Args:
        X: of the shape that `gather(t, indices, axis)` has.
        f: 1 where None.
        W: how `t` is laid out on an IPU; without effect.

    Raises:
        ValueError: where shapes do not fit or `f` is no scalar.
    """
    kind = "sparse_accumulate_"
    axis = axis_of(kind, tensor_operand(kind, t), axis)
    need_number(kind, t, tensor_operand(kind, X))
    need_int(kind, tensor_operand(kind, indices), "indices")
    shape = (*t.shape[:axis], *indices.shape, *t.shape[axis + 1 :])
    if X.shape != shape:
        raise ValueError(
            f"{kind}: {X.name} must be of shape {shape} for {t.name} {t.shape} and indices "
            f"{indices.shape} along axis {axis}, is {X.shape}"
        )
    tensors, number = _factor(kind, f)
    return emit_inplace("sparse_accumulate", [t, X, indices, *tensors], axis=axis, factor=number)


def _accumulate(kind: str, how: str, t: Tensor, x: Tensor, f: Any) -> Tensor:
    need_number(kind, tensor_operand(kind, t), tensor_operand(kind, x))
    _same_shape(kind, t, x)
    tensors, number = _factor(kind, f)
    if how != "add" and number is None and not tensors:
        raise TypeError(f"{kind}: the factor must be a number or a tensor, got None")
    return emit_inplace("accumulate", [t, x, *tensors], how=how, factor=number)


def _same_shape(kind: str, t: Tensor, x: Tensor) -> None:
    if t.shape != x.shape:
        raise ValueError(f"{kind}: {t.name} is {t.shape}, {x.name} is {x.shape}")


def _factor(kind: str, f: Any) -> tuple[list[Tensor], float | None]:
    """A factor as a scalar tensor, or as a number; neither where it is None."""
    if f is None:
        return [], None
    if not isinstance(f, Tensor):
        if not isinstance(f, int | float | np.number):
            raise TypeError(f"{kind}: the factor must be a number or a tensor, got {f!r}")
        return [], float(f)
    need_number(kind, f)
    if f.nelms != 1:
        raise ValueError(f"{kind}: the factor must be a scalar, {f.name} is {f.shape}")
    return [f if f.shape == () else reshape(f, ())], None
