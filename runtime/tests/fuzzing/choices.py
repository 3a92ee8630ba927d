"""What the writer of random programs chooses from."""

from __future__ import annotations

import numpy as np

LARGEST = 8.0
"""Estimated magnitude from which on a tensor is scaled down, so that sums stay comparable."""

NAMES = (
    "token_attention",
    "prompt_attention",
    "verify_attention",
    "channel_quantized_matmul",
    "group_quantized_matmul",
    "layer_norm_distributed",
    "group_quantize_decompress",
)
"""Names of functions that a back end might take for what they usually compute."""

FLOATS = ("float32", "float16", "bfloat16")


def divisor(rng: np.random.Generator, replicas: int) -> tuple[int, int]:
    """Stride and size of some groups of replicas."""
    pairs = [
        (stride, size)
        for stride in (1, 2, 4, 8)
        for size in (1, 2, 4, 8)
        if replicas % (stride * size) == 0
    ]
    return pairs[rng.integers(len(pairs))]


PURE = {"products", "norm", "gate", "quantised", "elementwise", "attention", "rotary", "embedding"}
"""Idioms that write to nothing and involve no other replica."""
