"""GPTQ (arXiv 2210.17323): `weight = scale * (number - zero)` for the group of each input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from popxl_shared import groups

from utils.checkpoints.weight_files import FLOATS, CheckpointError, Stored, Tensors
from utils.escaping import cell, shown

GPTQ_PARTS = (".qweight", ".qzeros", ".scales", ".g_idx")

WORD = 32
"""Bits of the integers that GPTQ packs numbers into."""

MOST_ROUNDED = 0.01
"""Of a scale: what a bias may lose."""

BLOCK = 1 << 22
"""Numbers that are dequantised at once."""


@dataclass(frozen=True)
class GptqSettings:
    """What says how numbers are packed.

    Attributes:
        bits: of a number: 2, 4 or 8.
        group_size: inputs that share a scale; -1: all of them.
        zero_shift: what is added to stored zeros: 1 in the first version of the format.
        act_order: whether inputs may be of groups in any order.
    """

    bits: int
    group_size: int
    zero_shift: int
    act_order: bool

    @classmethod
    def read(cls, settings: dict[str, Any], place: str) -> GptqSettings:
        bits, group = settings.get("bits"), settings.get("group_size", -1)
        if (
            type(bits) is not int
            or bits not in (2, 4, 8)
            or type(group) is not int
            or not (group == -1 or group > 0)
        ):
            raise CheckpointError(
                f"{place}: GPTQ of bits {shown(bits)} and group_size {shown(group)} is not "
                "supported: bits must be 2, 4 or 8, group_size -1 or more than 0"
            )
        version = settings.get("checkpoint_format", "gptq")
        if version not in ("gptq", "gptq_v2"):
            raise CheckpointError(
                f"{place}: checkpoint_format {cell(version)} is not supported: gptq and gptq_v2 are"
            )
        return cls(bits, group, 1 if version == "gptq" else 0, bool(settings.get("desc_act")))


class GptqTensors:
    """GPTQ: numbers of a few bits along the inputs, packed into 32-bit words.

    `qweight` int32 `[inputs * bits / 32, outputs]`, `qzeros` int32 `[groups, outputs * bits / 32]`,
    `scales` `[groups, outputs]`, and `g_idx` `[inputs]`, the group of each input, which need not
    be in order (act-order).
    """

    def __init__(self, tensors: Tensors, settings: dict[str, Any], place: str):
        self._tensors = tensors
        self._settings = GptqSettings.read(settings, place)
        self.form = f"GPTQ of {self._settings.bits} bits"
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
        if len(words.shape) != 2:
            raise CheckpointError(f"{words} has shape {shown(words.shape)}, not rows of words")
        _check_type(words, "int32")
        _check_type(zeros, "int32")
        _check_type(scales, *FLOATS)
        self._check_index(module)
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
        words = self._tensors.tensor(f"{module}.qweight").T
        zeros = _unpacked(self._tensors.tensor(f"{module}.qzeros"), bits).T
        zeros = (zeros + self._settings.zero_shift) & (2**bits - 1)
        scales = self._tensors.tensor(f"{module}.scales").float().T
        group = self._groups(module, inputs, scales.shape[1])
        matrix = PackedMatrix(words, bits, scales, zeros, group)
        weight = matrix.dequantised()
        if bits == groups.BITS:
            weight.in_groups = matrix.in_groups  # type: ignore[attr-defined]
        return weight

    def _part(self, module: str, part: str) -> Stored:
        if module + part not in self._all:
            words = self._tensors.stored(f"{module}.qweight")
            raise CheckpointError(f"{words} has no {part.removeprefix('.')} beside it")
        return self._tensors.stored(module + part)

    def _check_index(self, module: str) -> None:
        if f"{module}.g_idx" in self._all:
            _check_type(self._tensors.stored(f"{module}.g_idx"), "int32", "int64")
        elif self._settings.act_order:
            self._part(module, ".g_idx")  # which says that it is missing

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


@dataclass(frozen=True)
class PackedMatrix:
    """Numbers of a few bits, with a scale and a zero for each group of inputs.

    Attributes:
        words: int32 `[outputs, inputs * bits / 32]`.
        scales, zeros: `[outputs, groups]`.
        group: of each input.
    """

    words: torch.Tensor
    bits: int
    scales: torch.Tensor
    zeros: torch.Tensor
    group: torch.Tensor

    def dequantised(self) -> torch.Tensor:
        """float32 `[outputs, inputs]`, made in blocks: beside it there is little in memory."""
        outputs, inputs = len(self.words), len(self.group)
        weight = torch.empty(outputs, inputs)
        step = max(1, BLOCK // inputs)
        for begin in range(0, outputs, step):
            rows = slice(begin, begin + step)
            numbers = _unpacked(self.words[rows], self.bits)
            centred = numbers - self.zeros[rows][:, self.group]
            torch.mul(centred, self.scales[rows][:, self.group], out=weight[rows])
        return weight

    def in_groups(self, size: int) -> Callable[[int, int], tuple[np.ndarray, ...]] | None:
        """What `groups.quantised` gives of rows, without rounding numbers.

        `scale * (number - zero)` is `scale * number + bias`. The scale must be a float16; the bias
        is rounded to one, by less than a hundredth of a scale.

        Returns:
            None where it does not fit: the numbers are of other bits, or the inputs of a group of
            `size` have several scales, as act-order leaves them.
        """
        if self.bits != groups.BITS or len(self.group) % size:
            return None
        by_group = self.group.reshape(-1, size)
        if not bool((by_group == by_group[:, :1]).all()):
            return None
        scale, zero = (t[:, by_group[:, 0]].numpy() for t in (self.scales, self.zeros))
        halves, exact = scale.astype(np.float16), -scale * zero
        with np.errstate(over="ignore", invalid="ignore"):
            bias = exact.astype(np.float16)
            near = np.abs(bias.astype(np.float32) - exact) <= np.abs(scale) * MOST_ROUNDED
        if not (np.array_equal(halves, scale) and near.all()):
            return None

        def rows(begin: int, end: int) -> tuple[np.ndarray, ...]:
            numbers = _unpacked(self.words[begin:end], self.bits).numpy()
            words = groups.packed(numbers.reshape(len(numbers), -1, size))
            return words, halves[begin:end, :, np.newaxis], bias[begin:end, :, np.newaxis]

        return rows


def _check_type(found: Stored, *types: str) -> None:
    if found.dtype not in types:
        raise CheckpointError(f"{found} is of type {cell(found.dtype)}, not {' or '.join(types)}")


def group_size_of(settings: Any) -> int | None:
    """The size of the groups of GPTQ's settings, where weights of 4 bits may have them; or None."""
    settings = settings if isinstance(settings, dict) else {}
    size = settings.get("group_size")
    known = settings.get("bits") == groups.BITS and settings.get("quant_method", "gptq") == "gptq"
    return (
        size
        if known and type(size) is int and size >= groups.PER_WORD and size % groups.PER_WORD == 0
        else None
    )


def _unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 `[rows, columns]` as int32 numbers `[rows, columns * 32 / bits]`, the lowest first."""
    shifts = torch.arange(0, WORD, bits, dtype=torch.int32)
    numbers = (words[:, :, None] >> shifts) & (2**bits - 1)
    return numbers.reshape(len(words), -1)
