"""What ops along axes do, on torch tensors of shape `(*mesh, *shape)`; axes are from the end."""

from __future__ import annotations

from collections.abc import Callable

import torch

from popxl_torch.backends.reference.functions import HALF


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


REDUCTIONS: dict[str, Callable] = {
    "sum": reduce_sum,
    "mean": reduce_mean,
    "prod": reduce_prod,
    "sumsquare": reduce_sumsquare,
    "logsumexp": reduce_logsumexp,
    "logsum": reduce_logsum,
    "median": reduce_median,
    "l1": reduce_l1,
    "l2": reduce_l2,
    "max": torch.amax,
    "min": torch.amin,
}
"""What reductions do, along axes from the end."""

OF_ONE = {"sumsquare": torch.square, "logsum": torch.log, "l1": torch.abs, "l2": torch.abs}
"""What a reduction of single elements is, where it is not the element."""


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
