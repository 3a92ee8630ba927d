"""Checkpoints that others have quantised, read as the floats that they stand for.

A form wraps the tensors of a folder: it offers `…weight` in place of what that was stored as. One
matrix at a time is dequantised, when it is read.

Formulas: bitsandbytes' LLM.int8 (arXiv 2208.07339), `weight = int8 * SCB / 127`; GPTQ (arXiv
2210.17323), `weight = scale * (q - zero)` for the group of each input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from utils.checkpoints.weight_files import CheckpointError, Stored, Tensors
from utils.escaping import cell, shown

WORD = 32
"""Bits of the integers that GPTQ packs numbers into."""

INT8_PARTS = (".SCB", ".weight_format")
GPTQ_PARTS = (".qweight", ".qzeros", ".scales", ".g_idx")


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
        if stored.dtype != "int8" or scale.shape != stored.shape[:1]:
            raise CheckpointError(
                f"{stored} is {stored.dtype} {shown(stored.shape)} with scales "
                f"{shown(scale.shape)}, not int8 with a scale for each output"
            )
        return replace(stored, dtype="float32")

    def tensor(self, name: str) -> torch.Tensor:
        tensor = self._tensors.tensor(name)
        if not self._is_scaled(name):
            return tensor
        self.stored(name)
        scale = self._tensors.tensor(f"{name.removesuffix('.weight')}.SCB")
        return tensor.float() * (scale.float() / 127)[:, None]

    def _is_scaled(self, name: str) -> bool:
        return name.removesuffix(".weight") in self._scales and name.endswith(".weight")


@dataclass(frozen=True)
class GptqSettings:
    """What says how numbers are packed.

    Attributes:
        bits: of a number: 2, 4 or 8.
        group_size: inputs that share a scale; -1: all of them.
        zero_shift: what is added to stored zeros: 1 in the first version of the format.
    """

    bits: int
    group_size: int
    zero_shift: int

    @classmethod
    def read(cls, settings: dict[str, Any], place: str) -> GptqSettings:
        bits, group = settings.get("bits"), settings.get("group_size", -1)
        if bits not in (2, 4, 8) or type(group) is not int or not (group == -1 or group > 0):
            raise CheckpointError(
                f"{place}: GPTQ of bits {shown(bits)} and group_size {shown(group)} is not "
                "supported: bits must be 2, 4 or 8, group_size -1 or more than 0"
            )
        version = settings.get("checkpoint_format", "gptq")
        if version not in ("gptq", "gptq_v2"):
            raise CheckpointError(
                f"{place}: checkpoint_format {cell(version)} is not supported: gptq and gptq_v2 are"
            )
        return cls(bits, group, 1 if version == "gptq" else 0)


class GptqTensors:
    """GPTQ: numbers of a few bits along the inputs, packed into 32-bit words.

    `qweight` int32 `[inputs * bits / 32, outputs]`, `qzeros` int32 `[groups, outputs * bits / 32]`,
    `scales` `[groups, outputs]`, and `g_idx` `[inputs]`, the group of each input, which need not
    be in order (act-order).
    """

    def __init__(self, tensors: Tensors, settings: dict[str, Any], place: str):
        self._tensors = tensors
        self._settings = GptqSettings.read(settings, place)
        self._all = set(tensors.names())
        self._packed = {n.removesuffix(".qweight") for n in self._all if n.endswith(".qweight")}

    def names(self) -> list[str]:
        others = [name for name in self._tensors.names() if not name.endswith(GPTQ_PARTS)]
        return others + [f"{module}.weight" for module in sorted(self._packed)]

    def stored(self, name: str) -> Stored:
        module = name.removesuffix(".weight")
        if module not in self._packed or module == name:
            return self._tensors.stored(name)
        words, zeros, scales = (self._part(module, part) for part in GPTQ_PARTS[:3])
        each = WORD // self._settings.bits
        if len(words.shape) != 2 or words.dtype != "int32":
            raise CheckpointError(
                f"{words} is {words.dtype} {shown(words.shape)}, not rows of int32"
            )
        inputs, outputs = words.shape[0] * each, words.shape[1]
        size = inputs if self._settings.group_size == -1 else self._settings.group_size
        groups = -(-inputs // size)
        for found, shape in ((scales, (groups, outputs)), (zeros, (groups, outputs // each))):
            if found.shape != shape:
                raise CheckpointError(
                    f"{found} has shape {shown(found.shape)}; for {inputs} inputs, {outputs} "
                    f"outputs and groups of {size} it must be {shape}"
                )
        return Stored(words.name, words.file, (outputs, inputs), "float16")

    def tensor(self, name: str) -> torch.Tensor:
        module = name.removesuffix(".weight")
        if module not in self._packed or module == name:
            return self._tensors.tensor(name)
        _, inputs = self.stored(name).shape
        bits = self._settings.bits
        numbers = _unpacked(self._tensors.tensor(f"{module}.qweight").T, bits)  # [outputs, inputs]
        zeros = _unpacked(self._tensors.tensor(f"{module}.qzeros"), bits)  # [groups, outputs]
        zeros = (zeros + self._settings.zero_shift) & (2**bits - 1)
        scales = self._tensors.tensor(f"{module}.scales").float()
        group = self._groups(module, inputs, len(scales))
        return (numbers - zeros.T[:, group]).float() * scales.T[:, group]

    def _part(self, module: str, part: str) -> Stored:
        if module + part not in self._all:
            words = self._tensors.stored(f"{module}.qweight")
            raise CheckpointError(f"{words} has no {part.removeprefix('.')} beside it")
        return self._tensors.stored(module + part)

    def _groups(self, module: str, inputs: int, groups: int) -> torch.Tensor:
        """The group of each input."""
        if f"{module}.g_idx" not in self._all:
            return torch.arange(inputs) // (-(-inputs // groups))
        found = self._tensors.tensor(f"{module}.g_idx").long()
        if found.shape != (inputs,) or not 0 <= int(found.min()) <= int(found.max()) < groups:
            raise CheckpointError(
                f"{self._tensors.stored(f'{module}.g_idx')} must hold a group of {groups} for each "
                f"of {inputs} inputs"
            )
        return found


def _unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 `[rows, columns]` as int32 numbers `[rows, columns * 32 / bits]`, the lowest first."""
    shifts = torch.arange(0, WORD, bits, dtype=torch.int32)
    numbers = (words[:, :, None] >> shifts) & (2**bits - 1)
    return numbers.reshape(len(words), -1)
