"""Tensors of 4 bits an element, quantised in groups."""

from .group_quantize_decompress import (
    NIBBLES,
    group_quantize_compress_numpy,
    group_quantize_decompress,
    group_quantize_decompress_numpy,
)

__all__ = [
    "NIBBLES",
    "group_quantize_compress_numpy",
    "group_quantize_decompress",
    "group_quantize_decompress_numpy",
]
