"""Random numbers from seeds, as torch ops on tensors of shape `(*mesh, *shape)`.

The generator is Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
1, 2, 3", SC 2011): ten rounds make four 32-bit words from a counter of four words and a key of two,
the seed. It keeps no state, so the numbers are the same wherever and in whatever parts they are
made. Words are kept in int64, in which their products wrap as they should; what follows is computed
in float64 and rounded once, so that devices whose functions differ in the last place agree.
"""

from __future__ import annotations

import math

import torch

from popxl_torch.lowering.placement import move

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF

MOST_BLOCKS = 1 << 15
"""Made at once on a CPU, so that all ten rounds work in its L2 cache."""

NUMBERS, SEEDS = 0, 1
"""The counter's last word: numbers and new seeds from one seed have nothing in common."""


def philox(
    counter: tuple[torch.Tensor, ...], key: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Four words for each four of a counter and two of a key; all int64 from 0 to 2**32 - 1."""
    a, b, c, d = counter
    first, second = key
    for number in range(ROUNDS):
        if number:
            first = (first + KEY_STEPS[0]) & WORD
            second = (second + KEY_STEPS[1]) & WORD
        p, q = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b = _high(q) ^ b ^ first, q & WORD
        c, d = _high(p) ^ d ^ second, p & WORD
    return a, b, c, d


def _high(product: torch.Tensor) -> torch.Tensor:
    return (product >> 32) & WORD


def words(seed: torch.Tensor, count: int, domain: int = NUMBERS) -> torch.Tensor:
    """int64 `(*mesh, blocks, 4)`: at least `count` random words of the seed `(*mesh, 2)`."""
    blocks = -(-count // 4)
    at_once = MOST_BLOCKS if seed.device.type == "cpu" else max(blocks, 1)
    starts = range(0, max(blocks, 1), at_once)
    parts = [_blocks(seed, at, min(at + at_once, blocks), domain) for at in starts]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def _blocks(seed: torch.Tensor, start: int, end: int, domain: int) -> torch.Tensor:
    """int64 `(*mesh, end - start, 4)`."""
    index = torch.arange(start, end, device=seed.device)
    key = seed[..., :1], seed[..., 1:]  # [*mesh, 1]
    zeros = torch.zeros_like(index)
    made = philox((index & WORD, index >> 32, zeros, zeros + domain), key)
    return torch.stack(torch.broadcast_tensors(*made), dim=-1)


def _shaped(numbers: torch.Tensor, seed: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The first of `numbers`, `(*mesh, blocks, n)`, as `(*mesh, *shape)`."""
    flat = numbers.flatten(-2)[..., : math.prod(shape)]
    return flat.reshape(seed.shape[:-1] + shape)


def uniform(
    seed: torch.Tensor,
    device: torch.device,
    shape: tuple[int, ...],
    low: float,
    high: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Multiples of 2**-24 from 0 on, below 1, brought to `low` and `high`."""
    seed = move(seed, device)
    drawn = _shaped(words(seed, math.prod(shape)), seed, shape) >> 8
    return drawn.double().mul_((high - low) * 2.0**-24).add_(low).to(dtype)


def normal(
    seed: torch.Tensor,
    device: torch.device,
    shape: tuple[int, ...],
    mean: float,
    std: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Two numbers from two words, by Box and Muller."""
    seed = move(seed, device)
    drawn = words(seed, math.prod(shape)).unflatten(-1, (2, 2))  # [*mesh, blocks, 2, 2]
    u = (drawn.double() + 0.5) * 2.0**-32
    radius = (u[..., 0].log() * -2).sqrt()
    angle = u[..., 1] * (2 * math.pi)
    both = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(-2)
    return _shaped(both, seed, shape).mul_(std).add_(mean).to(dtype)


def dropout(
    x: torch.Tensor, seed: torch.Tensor, lead: int, shape: tuple[int, ...], ratio: float
) -> torch.Tensor:
    """`x` over the share kept, or 0; the mask has `shape`, which broadcasts to that of `x`."""
    drawn = _shaped(words(seed, math.prod(shape)), seed, shape)
    keep = drawn >= round(ratio * 2**32)
    missing = (1,) * (x.ndim - lead - len(shape))
    keep = keep.reshape(seed.shape[:-1] + missing + shape)
    wide = x if x.is_floating_point() else x.double()
    return torch.where(keep, wide * (1 / (1 - ratio)), 0).to(x.dtype)


def split(seed: torch.Tensor, n: int) -> tuple[torch.Tensor, ...]:
    """`n` seeds, int64 `(*mesh, 2)`."""
    return words(seed, 4 * n, SEEDS)[..., :2].unbind(-2)
