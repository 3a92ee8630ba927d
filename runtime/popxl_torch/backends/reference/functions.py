"""What ops do, on torch tensors of shape `(*mesh, *shape)`.

`lead` is the number of mesh axes. Axes are counted from the end wherever possible, so that most
kernels need not know of the mesh.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom

from popxl_torch.memory.arrays import broadcast_shapes

HALF = (torch.float16, torch.bfloat16)


def align(x: torch.Tensor, lead: int, missing: int) -> torch.Tensor:
    """Insert `missing` axes of size 1 behind the mesh, for broadcasting against a higher rank."""
    return x.reshape(x.shape[:lead] + (1,) * missing + x.shape[lead:])


def same_mesh(lead: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors expanded to one size along every mesh axis."""
    if not lead:
        return tensors
    mesh = broadcast_shapes(*(t.shape[:lead] for t in tensors))
    return tuple(t.expand(*mesh, *t.shape[lead:]) for t in tensors)


def clone(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype)


# --- shape ---


def reshape(x: torch.Tensor, lead: int, shape: tuple[int, ...]) -> torch.Tensor:
    return x.reshape(x.shape[:lead] + tuple(shape))


def permute(x: torch.Tensor, lead: int, permutation: tuple[int, ...]) -> torch.Tensor:
    return x.permute((*range(lead), *(lead + p for p in permutation)))


def take_range(x: torch.Tensor, axis: int, start: int, step: int, length: int) -> torch.Tensor:
    """`length` elements from `start` on; torch has no negative steps, so these reverse a part."""
    if step < 0 and length:
        first = start + step * (length - 1)
        return take_range(x, axis, first, -step, length).flip(axis)
    if step == 1 or length <= 1:
        return x.narrow(axis, min(max(start, 0), x.shape[axis]), length)  # of none, anywhere
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, start + step * (length - 1) + 1, step)
    return x[tuple(index)]


Bounds = tuple[tuple[int, int, int], ...]
"""Of a slice: start, step and length along each logical axis."""


def take_part(x: torch.Tensor, bounds: Bounds) -> torch.Tensor:
    """The elements within `bounds`; a view, except where a step is negative."""
    for axis, (start, step, length) in enumerate(bounds, -len(bounds)):
        if (start, step, length) != (0, 1, x.shape[axis]):
            x = take_range(x, axis, start, step, length)
    return x


def put_part(target: torch.Tensor, value: torch.Tensor, bounds: Bounds) -> None:
    """Write `value` to the elements of `target` within `bounds`."""
    turned = [axis for axis, bound in enumerate(bounds, -len(bounds)) if bound[1] < 0]
    forward = tuple(
        (start + step * (length - 1), -step, length) if step < 0 else (start, step, length)
        for start, step, length in bounds
    )
    take_part(target, forward).copy_(value.flip(turned) if turned else value)


def with_part(x: torch.Tensor, value: torch.Tensor, lead: int, bounds: Bounds) -> torch.Tensor:
    """A copy of `x` with `value` within `bounds`."""
    mesh = broadcast_shapes(x.shape[:lead], value.shape[:lead])
    wide = x.expand(*mesh, *x.shape[lead:]).clone()
    put_part(wide, value, bounds)
    return wide


def concat(xs: list[torch.Tensor], lead: int, axis: int) -> torch.Tensor:
    return torch.cat(same_mesh(lead, *xs), dim=axis)


# --- elementwise ---


def scaled_add(x: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a * x + b * y


def gelu(x: torch.Tensor) -> torch.Tensor:
    """In its tanh form (arXiv 1606.08415)."""
    return F.gelu(x, approximate="tanh")


def clip(x: torch.Tensor, min: float | None = None, max: float | None = None) -> torch.Tensor:
    return torch.clamp(x, min, max).to(x.dtype)


def increment_mod(x: torch.Tensor, increment: float, modulus: float) -> torch.Tensor:
    return torch.remainder(x + increment, modulus).to(x.dtype)


def integer_div(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Towards zero."""
    _need_divisor("div", y)
    return torch.div(x, y, rounding_mode="trunc")


def integer_fmod(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """With the sign of `x`."""
    _need_divisor("fmod", y)
    return torch.fmod(x, y)


def _need_divisor(kind: str, y: torch.Tensor) -> None:
    if not bool(y.all()):
        raise ZeroDivisionError(f"{kind}: an integer divisor is 0")


def maximum(*xs: torch.Tensor) -> torch.Tensor:
    result = xs[0]
    for x in xs[1:]:
        result = torch.maximum(result, x)
    return result


_NAMED_AS_IN_TORCH = """
    abs sign ceil floor cos sin exp log log2 sqrt tanh relu isfinite isinf isnan
    add sub mul pow logical_and logical_or logical_not where
"""

ELEMENTWISE: dict[str, Callable] = {
    **{kind: getattr(torch, kind) for kind in _NAMED_AS_IN_TORCH.split()},
    "negate": torch.neg,
    "gelu": gelu,
    "geluerf": F.gelu,
    "swish": F.silu,
    "equal": torch.eq,
    "greater": torch.gt,
    "maximum": maximum,
    "scaled_add": scaled_add,
}
"""What elementwise ops do, on operands that broadcast."""


# --- host ---


def print_tensor(
    x: torch.Tensor,
    title: str,
    enabled: bool,
    style: dict[str, Any],
    float_format: str,
    separator: str,
    brackets: tuple[str, str],
) -> torch.Tensor:
    """Print to standard error, so that a program's output stays its own."""
    if enabled:
        array = x.detach().cpu().to(torch.float32 if x.dtype in HALF else x.dtype).numpy()
        if float_format == "scientific":
            style = {**style, "formatter": {"float_kind": f"{{:.{style['precision']}e}}".format}}
        fixed = float_format == "fixed"
        text = np.array2string(array, separator=separator, suppress_small=fixed, **style)
        text = text.replace("[", brackets[0]).replace("]", brackets[1])
        print(f"{title} {text}", file=sys.stderr)
    return x
