"""Resampling: `interpolate`, whose places are known beforehand, and `roi_align`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from popxl.graph import Op

from popxl_torch.backends.reference.functions import HALF, same_mesh
from popxl_torch.backends.reference.indexing import SIGNED

_CUBIC = np.float32(-0.75)
_REGIONS_AT_ONCE = 64
"""Each takes the memory of a sample for its time."""


class Interpolate:
    """Each element of the result is a weighted sum of some elements along each axis."""

    def __init__(self, op: Op, device: torch.device):
        self.__name__ = "interpolate"
        self.steps = []
        rank = op.inputs[0].rank
        for axis, scale in enumerate(op.scales):
            if scale != 1:
                sizes = op.inputs[0].shape[axis], op.outputs[0].shape[axis]
                taps, weights = _taps(op, np.float32(scale), *sizes)
                indices = torch.from_numpy(taps.astype(np.int64)).to(device)  # (taps, result)
                factors = None if weights is None else torch.from_numpy(weights).to(device)
                self.steps.append((axis - rank, indices, factors))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        bits = SIGNED.get(x.dtype)
        if bits is not None:
            return self(x.view(bits)).view(x.dtype)
        weighted = any(factors is not None for _, _, factors in self.steps)
        result = x.float() if weighted and x.dtype in HALF else x
        for axis, indices, factors in self.steps:
            result = _step(result, axis, indices, factors)
        return result.to(x.dtype)


def _step(
    x: torch.Tensor, axis: int, indices: torch.Tensor, factors: torch.Tensor | None
) -> torch.Tensor:
    if factors is None:
        return x.index_select(axis, indices[0])
    shape = (-1,) + (1,) * (-1 - axis)
    terms = [
        x.index_select(axis, taps) * factor.reshape(shape)
        for taps, factor in zip(indices, factors, strict=True)
    ]
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


def _taps(op: Op, scale: np.float32, size: int, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Which elements of an axis, and how much of each, `(taps, count)`; no weights for one."""
    x = _places(op.places, np.arange(count, dtype=np.float32), scale, size)
    if op.mode == "nearest":
        return np.clip(_NEAREST[op.nearest_mode](x), 0, size - 1)[None], None
    if op.mode == "linear":
        part = np.maximum(x, 0) % 1
        around = np.clip([np.floor(x), np.ceil(x)], 0, size - 1)
        return around, np.stack([1 - part, part])
    below = np.floor(x)
    around = np.clip([below + offset for offset in (-1, 0, 1, 2)], 0, size - 1)
    return around, _cubic_weights(x - below)


def _places(mode: str, i: np.ndarray, scale: np.float32, size: int) -> np.ndarray:
    """Where along an axis of `size` the elements `i` of the result lie; in float32, as in PopXL."""
    half, made = np.float32(0.5), np.float32(size) * scale
    if mode == "asymmetric":
        return i / scale
    if mode == "align_corners":
        return i * 0 if made == 1 else i * np.float32(size - 1) / (made - 1)
    if mode == "pytorch_half_pixel" and made <= 1:
        return i * 0
    return (i + half) / scale - half


_NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.where(x % 1 <= 0.5, np.floor(x), np.ceil(x)),
    "round_prefer_ceil": lambda x: np.floor(x + np.float32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _cubic_weights(part: np.ndarray) -> np.ndarray:
    """Cubic convolution (Keys 1981) of the elements at -1, 0, 1 and 2 of the one below."""
    a = _CUBIC

    def near(d: np.ndarray) -> np.ndarray:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: np.ndarray) -> np.ndarray:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return np.stack([far(part + 1), near(part), near(1 - part), far(2 - part)])


def roi_align(
    x: torch.Tensor,
    rois: torch.Tensor,
    batch_index: torch.Tensor,
    lead: int,
    scale: float,
    samples: int,
    size: tuple[int, int],
) -> torch.Tensor:
    """`(*mesh, regions, channels, *size)` from `(*mesh, batch, channels, height, width)`."""
    batch, (height, width) = x.shape[lead], x.shape[-2:]
    index = batch_index.long()
    if index.device.type == "cpu" and not ((index >= 0) & (index < batch)).all():
        outside = index[(index < 0) | (index >= batch)][0].item()
        raise IndexError(f"roi_align: batch index {outside} is outside the batch of {batch}")
    x, rois, index = same_mesh(lead, x, rois, index)
    mesh = x.shape[:lead]
    first = torch.arange(mesh.numel(), device=index.device) * batch  # sample of each replica
    which = (index.reshape(mesh.numel(), -1) + first[:, None]).flatten()
    maps, corners = x.flatten(0, lead), rois.float().flatten(0, lead) * scale
    rows = _bins(corners[:, 1], corners[:, 3], samples, size[0], height)
    columns = _bins(corners[:, 0], corners[:, 2], samples, size[1], width)
    made = [
        torch.einsum("rph,rchw,rqw->rcpq", part[0], maps[part[2]].float(), part[1])
        for part in zip(*(t.split(_REGIONS_AT_ONCE) for t in (rows, columns, which)), strict=True)
    ]
    return torch.cat(made).to(x.dtype).reshape(*mesh, -1, *made[0].shape[1:])


def _bins(
    start: torch.Tensor, end: torch.Tensor, samples: int, bins: int, size: int
) -> torch.Tensor:
    """How much of each element along an axis is in each bin, `(regions, bins, size)`."""
    step = (end - start).clamp(min=1) / (bins * samples)
    at = (torch.arange(bins * samples, device=start.device) + 0.5) * step[:, None] + start[:, None]
    inside = (at >= -1) & (at <= size)
    at = at.clamp(0, size - 1)
    elements = torch.arange(size, device=start.device)
    weights = (1 - (at[..., None] - elements).abs()).clamp(min=0) * inside[..., None]
    return weights.unflatten(1, (bins, samples)).mean(2)
