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


ELEMENTWISE: dict[str, Callable] = {
    "abs": torch.abs,
    "negate": torch.neg,
    "sign": torch.sign,
    "ceil": torch.ceil,
    "floor": torch.floor,
    "cos": torch.cos,
    "sin": torch.sin,
    "exp": torch.exp,
    "log": torch.log,
    "log2": torch.log2,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": gelu,
    "geluerf": F.gelu,
    "swish": F.silu,
    "isfinite": torch.isfinite,
    "isinf": torch.isinf,
    "isnan": torch.isnan,
    "logical_not": torch.logical_not,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "pow": torch.pow,
    "equal": torch.eq,
    "greater": torch.gt,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "maximum": maximum,
    "where": torch.where,
    "scaled_add": scaled_add,
}
"""What elementwise ops do, on operands that broadcast."""


# --- reductions ---


def reduce_sum(x: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    if x.dtype in HALF:
        return x.sum(dim, keepdim, dtype=torch.float32).to(x.dtype)
    return x.sum(dim, keepdim, dtype=x.dtype)


def reduce_mean(x: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    """Of integers, towards zero."""
    accumulate = torch.float32 if x.dtype in (*HALF, torch.float32) else torch.float64
    return x.mean(dim, keepdim, dtype=accumulate).to(x.dtype)


def reduce_prod(x: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    accumulate = torch.float32 if x.dtype in HALF else x.dtype
    result = x.to(accumulate)
    for axis in sorted(dim, reverse=True):
        result = result.prod(axis, keepdim=True)
    return (result if keepdim else result.squeeze(dim)).to(x.dtype)


def reduce_sumsquare(x: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    wide = x.float() if x.dtype in HALF else x
    return wide.square().sum(dim, keepdim, dtype=wide.dtype).to(x.dtype)


def reduce_logsumexp(x: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    wide = x.float() if x.dtype in HALF else x
    return wide.logsumexp(dim, keepdim).to(x.dtype)


def reduce_l1(x: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    return reduce_sum(x.abs(), dim, keepdim)


def reduce_l2(x: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    wide = x.float() if x.dtype in HALF else x
    return wide.square().sum(dim, keepdim).sqrt().to(x.dtype)


def reduce_logsum(x: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    wide = x.float() if x.dtype in HALF else x
    return wide.sum(dim, keepdim).log().to(x.dtype)


def reduce_median(x: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    """Of an even number of elements the lower one in the middle."""
    together = x.movedim(dim, tuple(range(-len(dim), 0))).flatten(-len(dim))
    middle = together.median(-1).values
    if not keepdim:
        return middle
    return middle.reshape([1 if a in dim else n for a, n in enumerate(x.shape, -x.ndim)])


def histogram(
    x: torch.Tensor, lead: int, levels: tuple[float, ...], absolute: bool
) -> torch.Tensor:
    """int64 counts below the first level, between each two and from the last on."""
    bounds = torch.tensor(levels, device=x.device).to(x.dtype).float()
    values = x.flatten(lead) if x.ndim > lead else x.unsqueeze(-1)
    values = (values.abs() if absolute else values).float()
    place = torch.bucketize(values.contiguous(), bounds, right=True)
    counts = torch.zeros(*x.shape[:lead], len(levels) + 1, dtype=torch.int64, device=x.device)
    return counts.scatter_add(-1, place, torch.ones_like(place))


def argmax(x: torch.Tensor, dim: int, keepdim: bool) -> torch.Tensor:
    return x.argmax(dim, keepdim).to(torch.int32)


def argmin(x: torch.Tensor, dim: int, keepdim: bool) -> torch.Tensor:
    return x.argmin(dim, keepdim).to(torch.int32)


def topk(
    x: torch.Tensor, k: int, dim: int, largest: bool, sorted: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = x.topk(k, dim, largest, sorted)
    return values, indices.to(torch.int32)


def cumsum(x: torch.Tensor, dim: int) -> torch.Tensor:
    if x.dtype in HALF:
        return x.cumsum(dim, dtype=torch.float32).to(x.dtype)
    return x.cumsum(dim, dtype=x.dtype)


def softmax(x: torch.Tensor, dim: int) -> torch.Tensor:
    if x.dtype in HALF:
        return torch.softmax(x, dim, dtype=torch.float32).to(x.dtype)
    return torch.softmax(x, dim)


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, lead: int, eps: float
) -> torch.Tensor:
    missing = x.ndim - lead - 1
    if x.device.type != "cpu" and all(s == 1 for t in (weight, bias) for s in t.shape[:lead]):
        weight, bias = weight.reshape(-1), bias.reshape(-1)  # one kernel, with sums in float32
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    normed = F.layer_norm(x.float() if x.dtype in HALF else x, x.shape[-1:], None, None, eps)
    weight, bias = align(weight, lead, missing), align(bias, lead, missing)
    return (normed * weight.to(normed.dtype) + bias.to(normed.dtype)).to(x.dtype)


def group_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    lead: int,
    num_groups: int,
    eps: float,
) -> torch.Tensor:
    """Of `(*mesh, batch, channels, ...)`, over groups of channels."""
    wide = x.float() if x.dtype in HALF else x
    size = x.shape[lead + 1 :].numel() // num_groups
    grouped = wide.reshape(*x.shape[: lead + 1], num_groups, size)
    normed = F.layer_norm(grouped, grouped.shape[-1:], None, None, eps).reshape(x.shape)
    weight, bias = (_along_channels(t, x, lead).to(wide.dtype) for t in (weight, bias))
    return (normed * weight + bias).to(x.dtype)


def batch_norm(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    lead: int,
    eps: float,
) -> torch.Tensor:
    """Of `(*mesh, batch, channels, ...)`, with the statistics given."""
    channels = (_along_channels(t, x, lead).float() for t in (scale, bias, mean, var))
    scale, bias, mean, var = channels
    return ((x.float() - mean) * (torch.rsqrt(var + eps) * scale) + bias).to(x.dtype)


def _along_channels(t: torch.Tensor, x: torch.Tensor, lead: int) -> torch.Tensor:
    """`(*mesh, channels)`, for broadcasting against `(*mesh, batch, channels, ...)`."""
    return t.reshape(*t.shape[:lead], 1, -1, *(1,) * (x.ndim - lead - 2))


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
