"""Random numbers: the same for the same seed, on any device and with any number of replicas.

A replica's numbers depend on its own seed alone. The generator is Philox4x32-10 (Salmon, Moraes,
Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The numbers are not those of
an IPU. Every seed is uint32 `(2,)`, and another one is a ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.ops._build import emit, emit_one, need_number, tensor_operand
from popxl.tensor import Tensor, TensorSpec


def random_uniform(
    seed_tensor: Tensor,
    shape: Iterable[int],
    low: float = 0.0,
    high: float = 1.0,
    dtype: dtypes.dtype = dtypes.float32,
) -> Tensor:
    """Numbers of the uniform distribution from `low` on, below `high`, rounded to `dtype`.

    Raises:
        TypeError: where `dtype` is no float type.
        ValueError: where `high` is below `low`.
    """
    kind = "random_uniform"
    if not _number(kind, "low", low) <= _number(kind, "high", high):
        raise ValueError(f"{kind}: high {high} is below low {low}")
    return _drawn(kind, seed_tensor, shape, dtype, low=float(low), high=float(high))


def random_normal(
    seed_tensor: Tensor,
    shape: Iterable[int],
    mean: float = 0.0,
    std: float = 1.0,
    dtype: dtypes.dtype = dtypes.float32,
) -> Tensor:
    """Numbers of the normal distribution (Box and Muller, 1958), rounded to `dtype`.

    Raises:
        TypeError: where `dtype` is no float type.
        ValueError: where `std` is negative.
    """
    kind = "random_normal"
    if not _number(kind, "std", std) >= 0:
        raise ValueError(f"{kind}: std must be at least 0, got {std}")
    mean = float(_number(kind, "mean", mean))
    return _drawn(kind, seed_tensor, shape, dtype, mean=mean, std=float(std))


def dropout(t: Tensor, seed_tensor: Tensor, p: float) -> Tensor:
    """`t` with elements set to 0 with probability `p`, the others divided by `1 - p`.

    Args:
        p: from 0 on, below 1.

    Raises:
        TypeError: where `t` holds no numbers.
        ValueError: where `p` is out of range.
    """
    return _dropped("dropout", t, seed_tensor, tensor_operand("dropout", t).shape, p)


def shaped_dropout(t: Tensor, seed_tensor: Tensor, shape: Iterable[int], ratio: float) -> Tensor:
    """`dropout` that drops elements together.

    Args:
        shape: broadcasts to that of `t`; what one of its elements is broadcast to falls together.
        ratio: the probability, from 0 on, below 1.

    Raises:
        ValueError: where the shape does not broadcast to that of `t`, or as `dropout`.
    """
    tensor_operand("shaped_dropout", t)
    sizes = tuple(int(size) for size in shape)
    try:
        fits = np.broadcast_shapes(sizes, t.shape) == t.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"shaped_dropout: shape {sizes} does not broadcast to {t.name} {t.shape}")
    return _dropped("shaped_dropout", t, seed_tensor, sizes, ratio)


def split_random_seed(seed: Tensor, n: int = 2) -> tuple[Tensor, ...]:
    """`n` new seeds from one, whose own numbers they share nothing with.

    Args:
        seed: uint32 `(2,)`.

    Raises:
        ValueError: where `n` is below 1.
    """
    if not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"split_random_seed: n must be an integer of at least 1, got {n!r}")
    _check_seed("split_random_seed", seed)
    return emit("split_random_seed", [seed], [seed.spec] * int(n))


def _drawn(
    kind: str, seed: Tensor, shape: Iterable[int], dtype: dtypes.dtype, **bounds: float
) -> Tensor:
    _check_seed(kind, seed)
    spec = TensorSpec(shape, dtype)
    if not spec.dtype.is_floating_point:
        raise TypeError(f"{kind}: dtype must be a float type, got {spec.dtype}")
    return emit_one(kind, [seed], spec, **bounds)


def _dropped(kind: str, t: Tensor, seed: Tensor, shape: tuple[int, ...], ratio: float) -> Tensor:
    need_number(kind, t)
    _check_seed(kind, seed)
    what = "p" if kind == "dropout" else "ratio"
    if not 0 <= _number(kind, what, ratio) < 1:
        raise ValueError(f"{kind}: {what} must be from 0 on and below 1, got {ratio}")
    return emit_one("dropout", [t, seed], t.spec, name=kind, shape=shape, ratio=float(ratio))


def _check_seed(kind: str, seed: Any) -> None:
    if tensor_operand(kind, seed).shape != (2,) or seed.dtype != dtypes.uint32:
        raise ValueError(
            f"{kind}: the seed must be uint32 of shape (2,), {seed.name} is {seed.dtype} "
            f"{seed.shape}"
        )


def _number(kind: str, what: str, value: Any) -> float:
    if not isinstance(value, int | float | np.number) or math.isnan(value):
        raise TypeError(f"{kind}: {what} must be a number, got {value!r}")
    return float(value)
