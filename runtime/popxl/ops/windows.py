"""Where the windows of convolutions and pools lie: one record for each spatial axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from popxl.ops._build import need_one_of
from popxl.tensor import Tensor

PadType = Literal["not_set", "same_upper", "same_lower", "valid"]
"""Explicit padding; padding for `ceil(size / stride)` windows, an odd element of it at the end
("same_upper") or at the beginning ("same_lower"); no padding."""


@dataclass(frozen=True)
class Window:
    """The windows along one axis of `size` elements.

    Attributes:
        kernel: elements of a window, `dilation` apart.
        stride: from one window to the next.
        lower, upper: elements of padding; elements to leave out where negative.
        count: the number of windows.
    """

    size: int
    kernel: int
    stride: int
    dilation: int
    lower: int
    upper: int
    count: int

    def elements(self) -> list[int]:
        """How many elements of each window are not padding."""
        starts = [i * self.stride - self.lower for i in range(self.count)]
        offsets = range(0, self.kernel * self.dilation, self.dilation)
        last = self.size + min(self.upper, 0)
        return [sum(max(0, -self.lower) <= s + o < last for o in offsets) for s in starts]


def integers(
    kind: str,
    what: str,
    values: Iterable[int] | None,
    count: int,
    least: int,
    default: int | None = None,
    exact: bool = False,
) -> tuple[int, ...]:
    """`count` integers from `values`.

    Args:
        default: what missing ones at the end are, as in PopXL, all of them where `values` is None
            or empty; surplus ones have to be the same. None: there have to be `count`.
        exact: none may be missing, unless all given ones are `default`.

    Raises:
        TypeError: where `values` is no sequence of integers.
        ValueError: where there are too many or too few, or one is below `least`.
    """
    given = tuple(values) if isinstance(values, Iterable) else () if values is None else (values,)
    if not all(isinstance(v, int | np.integer) for v in given) or isinstance(values, int):
        raise TypeError(f"{kind}: {what} must be a tuple of integers, got {values!r}")
    missing, others = len(given) < count, set(given) - {default}
    fits = not set(given[count:]) - {default} and not (missing and exact and others)
    if not fits or (default is None and len(given) != count):
        raise ValueError(f"{kind}: {what} must be {count} integers, got {given}")
    if any(v < least for v in given):
        raise ValueError(f"{kind}: {what} must be at least {least} everywhere, got {given}")
    filled = given if default is None else given + (default,) * (count - len(given))
    return tuple(int(v) for v in filled[:count])


def spatial_rank(kind: str, t: Tensor) -> int:
    """The number of spatial axes of `(batch, channels, *spatial)`.

    Raises:
        ValueError: where there are none.
    """
    if t.rank < 3:
        raise ValueError(
            f"{kind}: {t.name} must be (batch, channels, *spatial), with 3 axes or more, "
            f"got {t.shape}"
        )
    return t.rank - 2


def pad_type_of(kind: str, what: str, given: str) -> str:
    """`given`, which has to be a `PadType`."""
    need_one_of(kind, what, given, get_args(PadType))
    return given


def windows(
    kind: str,
    t: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    pad_type: str,
    ceil_mode: bool = False,
) -> tuple[Window, ...]:
    """The windows along the spatial axes of `t`, `(batch, channels, *spatial)`.

    Args:
        padding: at the beginning of every axis, then at the end of every axis; counts only where
            `pad_type` is "not_set".
        ceil_mode: the last window may reach beyond the padding.

    Raises:
        ValueError: where the kernel is longer than the padded axis.
    """
    axes = len(kernel)
    pads = zip(padding[:axes], padding[axes:], strict=True)
    each = zip(t.shape[2:], kernel, stride, dilation, pads, strict=True)
    made = []
    for axis, (size, k, s, d, (lower, upper)) in enumerate(each, start=2):
        window = _window(size, k, s, d, lower, upper, pad_type, ceil_mode)
        if window.count < 1:
            raise ValueError(
                f"{kind}: the kernel takes {d * (k - 1) + 1} elements of axis {axis} of {t.name} "
                f"{t.shape}, which has {size}, {lower} + {upper} of padding"
            )
        made.append(window)
    return tuple(made)


def _window(
    size: int, k: int, s: int, d: int, lower: int, upper: int, pad_type: str, ceil_mode: bool
) -> Window:
    reach = d * (k - 1) + 1
    if pad_type.startswith("same"):
        count = -(-size // s)
        total = (count - 1) * s + reach - size
        small = math.trunc(total / 2)  # negative where strides leave elements out
        lower, upper = (
            (small, total - small) if pad_type == "same_upper" else (total - small, small)
        )
    elif pad_type == "valid":
        count, lower, upper = (size - reach) // s + 1, 0, 0
    else:
        room = size + lower + upper - reach
        count = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode:
            upper = (count - 1) * s + reach - size - lower
    return Window(size, k, s, d, lower, upper, count)
