"""Writing to variables."""

# ruff: noqa: F401 - optimisers are named here, as in PopXL

from __future__ import annotations

from popxl.ops._build import emit_inplace, same_dtype, tensor_operand
from popxl.ops.optimisers import adam_updater, adam_var_update, adamax_updater, lamb_updater
from popxl.tensor import Tensor


def copy_var_update_(t: Tensor, X: Tensor) -> Tensor:  # noqa: N803
    """Overwrite `t` with `X`.

    Raises:
        ValueError: where their shapes differ.
    """
    tensor_operand("copy_var_update_", t)
    same_dtype("copy_var_update_", t, tensor_operand("copy_var_update_", X))
    if t.shape != X.shape:
        raise ValueError(f"copy_var_update_: {t.name} is {t.shape}, {X.name} is {X.shape}")
    return emit_inplace("copy", [t, X])
