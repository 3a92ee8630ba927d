"""What quantised weights stand for, in numpy, and transformers' models with such weights."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import torch
from popxl_shared import groups
from transformers import BloomForCausalLM


def by_channel(weight: np.ndarray) -> np.ndarray:
    """Rows rounded to 127 steps either way."""
    scale = np.abs(weight).max(1, keepdims=True) / 127
    return np.rint(weight / scale) * scale


def by_group(weight: np.ndarray, group_size: int) -> np.ndarray:
    """The elements that the words of rows stand for."""
    words, scale, bias = groups.quantised(weight, group_size)
    wide = scale.astype(np.float32), bias.astype(np.float32)
    return groups.dequantised(words, *wide)


def dequantized(
    model: BloomForCausalLM, weight_precision: str, group_size: int = 64
) -> BloomForCausalLM:
    """A copy whose matrices are what `model`'s are in this precision."""
    convert = by_channel if weight_precision == "int8" else partial(by_group, group_size=group_size)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.from_numpy(convert(parameter.numpy())))
    return model
