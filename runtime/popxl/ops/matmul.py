"""Matrix products."""

from __future__ import annotations

import numpy as np

from popxl import dtypes
from popxl.context import get_ir
from popxl.ops._build import emit_one, need_number, same_dtype, tensor_operand
from popxl.tensor import Tensor, TensorSpec


def matmul(
    lhs: Tensor,
    rhs: Tensor,
    available_memory_proportion: float | None = None,
    output_type: dtypes.dtype | None = None,
    partials_type: dtypes.dtype | None = None,
) -> Tensor:
    """`lhs @ rhs` by numpy's rules, added up in float32 for half types.

    Args:
        output_type: dtype of the result; that of the operands where None.

    Raises:
        ValueError: where the inner sizes differ, an operand is a scalar, batches do not
            broadcast, or the option `partialsTypeMatMuls` is neither "half" nor "float".
    """
    same_dtype("matmul", tensor_operand("matmul", lhs), tensor_operand("matmul", rhs))
    need_number("matmul", lhs)
    output = lhs.dtype if output_type is None else dtypes.dtype.as_dtype(output_type)
    spec = TensorSpec(_shape(lhs, rhs), output)
    if partials_type is None:
        _check_partials(get_ir()._pb_ir.getSessionOptions().partialsTypeMatMuls)
    return emit_one("matmul", [lhs, rhs], spec, output_type=output)


def _check_partials(option: str | None) -> None:
    if option not in (None, "", "half", "float"):
        raise ValueError(f"partialsTypeMatMuls {option!r}: allowed are half and float")


def _shape(lhs: Tensor, rhs: Tensor) -> tuple[int, ...]:
    if not lhs.rank or not rhs.rank:
        raise ValueError(f"matmul: no operand may be a scalar, got {lhs.shape} and {rhs.shape}")
    left = lhs.shape if lhs.rank > 1 else (1, *lhs.shape)
    right = rhs.shape if rhs.rank > 1 else (*rhs.shape, 1)
    if left[-1] != right[-2]:
        raise ValueError(
            f"matmul: inner sizes differ: {lhs.name} {lhs.shape} and {rhs.name} {rhs.shape}"
        )
    try:
        batch = np.broadcast_shapes(left[:-2], right[:-2])
    except ValueError:
        raise ValueError(
            f"matmul: batches do not broadcast: {lhs.name} {lhs.shape} and {rhs.name} {rhs.shape}"
        ) from None
    rows = left[-2:-1] if lhs.rank > 1 else ()
    columns = right[-1:] if rhs.rank > 1 else ()
    return (*batch, *rows, *columns)
