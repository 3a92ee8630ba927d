"""Checkpoints that others have quantised, read as the floats that they stand for.

A form wraps the tensors of a folder: it offers `…weight` in place of what that was stored as. One
matrix at a time is dequantised, when it is read.

Formula of bitsandbytes' LLM.int8 (arXiv 2208.07339): `weight = int8 * SCB / 127`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from popxl_shared import channels

from utils.checkpoints.gptq import GptqTensors
from utils.checkpoints.weight_files import FLOATS, CheckpointError, Stored, Tensors
from utils.escaping import cell, shown
from utils.outside import read_mapping

SEPARATE_SETTINGS = "quantize_config.json"
"""Where GPTQ's settings are, if config.json does not have them."""

INT8_PARTS = (".SCB", ".weight_format")


def settings_of(folder: Path, config: Mapping[str, Any]) -> tuple[Any, str]:
    """How the weights are quantised, as a file of the folder says, and which file.

    Args:
        config: the content of config.json.

    Raises:
        CheckpointError: the other file cannot be read.
    """
    settings, separate = config.get("quantization_config"), folder / SEPARATE_SETTINGS
    if settings is None and os.path.lexists(separate):
        return read_mapping(separate, CheckpointError), str(separate)
    return settings, str(folder / "config.json")


def dequantised(tensors: Tensors, settings: Any, place: str) -> Tensors:
    """The tensors as floats.

    Args:
        settings: `quantization_config` of config.json, or the content of quantize_config.json.
        place: the file that these are from.

    Raises:
        CheckpointError: for a method that is not known.
    """
    names = tensors.names()
    scaled = any(name.endswith(".SCB") for name in names)
    packed = any(name.endswith(".qweight") for name in names)
    if settings is None and not (scaled or packed):
        return tensors
    settings = settings if isinstance(settings, dict) else {}
    method = settings.get("quant_method", "gptq" if packed else "bitsandbytes")
    if method == "bitsandbytes" and scaled:
        return Int8Tensors(tensors)
    if method == "gptq" and packed:
        return GptqTensors(tensors, settings, place)
    raise CheckpointError(
        f"{place} says that the weights are quantised by {cell(method)} in a way that is not "
        "supported: give a checkpoint in floats, bitsandbytes' int8 or GPTQ"
    )


class Int8Tensors:
    """bitsandbytes' int8: a scale for each output."""

    form = "int8 of bitsandbytes"

    def __init__(self, tensors: Tensors):
        self._tensors = tensors
        self._scales = {n.removesuffix(".SCB") for n in tensors.names() if n.endswith(".SCB")}

    def names(self) -> list[str]:
        return [name for name in self._tensors.names() if not name.endswith(INT8_PARTS)]

    def stored(self, name: str) -> Stored:
        stored = self._tensors.stored(name)
        if not self._is_scaled(name):
            return stored
        scale = self._tensors.stored(f"{name.removesuffix('.weight')}.SCB")
        fits = scale.shape == stored.shape[:1] and scale.dtype in FLOATS
        if stored.dtype != "int8" or not fits:
            raise CheckpointError(
                f"{stored} is {cell(stored.dtype)} {shown(stored.shape)} with scales "
                f"{cell(scale.dtype)} {shown(scale.shape)}, not int8 with a scale for each output"
            )
        return replace(stored, dtype="float32")

    def tensor(self, name: str) -> torch.Tensor:
        tensor = self._tensors.tensor(name)
        if not self._is_scaled(name):
            return tensor
        self.stored(name)
        scale = self._tensors.tensor(f"{name.removesuffix('.weight')}.SCB")
        return channels.dequantised(tensor.float(), scale.float() / channels.LARGEST)

    def _is_scaled(self, name: str) -> bool:
        return name.removesuffix(".weight") in self._scales and name.endswith(".weight")
