"""Convolutions and pools of tensors of shape `(*mesh, batch, channels, *spatial)`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from popxl.ops.windows import Window

from popxl_torch.backends.reference.functions import HALF, same_mesh, take_range


def pad(x: torch.Tensor, ends: Sequence[tuple[int, int]], value: float = 0) -> torch.Tensor:
    """`x` with (lower, upper) elements more at the ends of its last axes, fewer if negative."""
    if not any(map(any, ends)):
        return x
    return F.pad(x, [n for pair in reversed(ends) for n in pair], value=value)


# --- convolutions ---


def conv(
    x: torch.Tensor,
    w: torch.Tensor,
    lead: int,
    stride: tuple[int, ...],
    ends: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
) -> torch.Tensor:
    """Convolution with kernels `(*mesh, out_channels, channels / groups, *kernel)`.

    Args:
        ends: elements of padding at both ends of each axis, left out where negative.
    """
    even = all(a == b >= 0 for a, b in ends)
    padding = tuple(a for a, _ in ends) if even else (0,) * len(ends)

    def run(x: torch.Tensor, w: torch.Tensor, groups: int) -> torch.Tensor:
        padded = x if even else pad(x, ends)
        return _convolution(padded, w, stride, padding, dilation, False, groups)

    return _on_mesh(x, w, lead, groups, run)


def conv_transpose(
    x: torch.Tensor,
    w: torch.Tensor,
    lead: int,
    stride: tuple[int, ...],
    cuts: tuple[tuple[int, int], ...],
    groups: int,
) -> torch.Tensor:
    """Transposed convolution with kernels `(*mesh, channels, out_channels / groups, *kernel)`.

    Args:
        cuts: elements cut off at both ends of each axis, added where negative.
    """
    none, ones = (0,) * len(stride), (1,) * len(stride)

    def run(x: torch.Tensor, w: torch.Tensor, groups: int) -> torch.Tensor:
        full = _convolution(x, w, stride, none, ones, True, groups)
        return pad(full, [(-a, -b) for a, b in cuts])

    return _on_mesh(x, w, lead, groups, run)


def _convolution(
    x: torch.Tensor,
    w: torch.Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    transposed: bool,
    groups: int,
) -> torch.Tensor:
    """torch's own op below `F.conv2d` and the like; it can be told not to use TF32."""
    if x.dtype in HALF and x.device.type == "cpu":
        wide = _convolution(x.float(), w.float(), stride, padding, dilation, transposed, groups)
        return wide.to(x.dtype)
    no_output_padding = (0,) * len(stride)
    return torch._convolution(
        *(x, w, None, stride, padding, dilation, transposed, no_output_padding, groups),
        benchmark=False,
        deterministic=False,
        cudnn_enabled=True,
        allow_tf32=False,
    )


def _on_mesh(
    x: torch.Tensor,
    w: torch.Tensor,
    lead: int,
    groups: int,
    run: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
) -> torch.Tensor:
    """`run` for every replica at once.

    Replicas with one weight are more samples, those with weights of their own groups of channels.
    """
    if all(size == 1 for size in w.shape[:lead]):
        y = run(x.flatten(0, lead), w.reshape(w.shape[lead:]), groups)
        return y.reshape(*x.shape[: lead + 1], *y.shape[1:])
    x, w = same_mesh(lead, x, w)
    mesh, (batch, channels, *spatial) = x.shape[:lead], x.shape[lead:]
    replicas = math.prod(mesh)
    side_by_side = x.reshape(replicas, batch, channels, *spatial).transpose(0, 1)
    y = run(side_by_side.flatten(1, 2), w.flatten(0, lead), replicas * groups)
    apart = y.unflatten(1, (replicas, y.shape[1] // replicas)).transpose(0, 1)
    return apart.reshape(*mesh, *apart.shape[1:])


# --- pools ---


class MaxPool:
    def __init__(self, windows: tuple[Window, ...]):
        self.windows, self.__name__ = windows, "max_pool"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        padded = pad(x, [(v.lower, v.upper) for v in self.windows], -math.inf)
        return _combined(padded, self.windows, torch.maximum)


class AveragePool:
    """Sums over windows, in float32 for half types, over how many elements they are of."""

    def __init__(self, windows: tuple[Window, ...], device: torch.device):
        self.windows, self.__name__ = windows, "average_pool"
        counts = torch.ones(())
        for window in windows:
            counts = counts.unsqueeze(-1) * torch.tensor(window.elements(), dtype=torch.float32)
        self.counts = counts.to(device)  # windows along each axis

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float() if x.dtype in HALF else x
        padded = pad(wide, [(v.lower, v.upper) for v in self.windows])
        return (_combined(padded, self.windows, torch.add) / self.counts).to(x.dtype)


def _combined(
    x: torch.Tensor,
    windows: tuple[Window, ...],
    combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The elements of each window combined, one axis after the other."""
    for axis, window in enumerate(windows, start=-len(windows)):
        result, *others = (
            take_range(x, axis, i * window.dilation, window.stride, window.count)
            for i in range(window.kernel)
        )
        for other in others:
            result = combine(result, other)
        x = result
    return x
