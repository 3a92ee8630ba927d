"""LoRA adapters (arXiv 2106.09685) as PEFT stores them, merged into a checkpoint as it is read.

A matrix becomes `W + scale * B A` with `scale = lora_alpha / r`, or `/ sqrt(r)` where `use_rslora`
is set. Tensors that an adapter stores whole (`modules_to_save`, biases) replace the checkpoint's.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.checkpoints.names import Names
from utils.checkpoints.weight_files import CheckpointError, Stored, Tensors, WeightFiles
from utils.escaping import cell, shown
from utils.outside import read_mapping

SETTINGS = "adapter_config.json"
PREFIX = "base_model.model."
"""What names of an adapter begin with."""

FILES = ("adapter_model.safetensors", "adapter_model.bin")
MATRICES = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
"""Endings of the two matrices of a linear layer, and of an embedding, whose change is `(B A)^T`."""


@dataclass(frozen=True)
class Change:
    """One matrix's: where its two factors are stored, and what they are multiplied with."""

    a: str
    b: str
    scale: float
    turned: bool


def parsed(adapter: str) -> tuple[Path, float]:
    """Folder and weight of `FOLDER` or `FOLDER=WEIGHT`.

    Raises:
        CheckpointError: the weight is not finite.
    """
    folder, equals, text = adapter.rpartition("=")
    try:
        weight = float(text) if equals else 1.0
    except ValueError:
        return Path(adapter).expanduser(), 1.0  # a folder with a sign in its name
    if not math.isfinite(weight):
        raise CheckpointError(f"the weight of LoRA adapter {cell(folder)} must be finite")
    return Path(folder if equals else adapter).expanduser(), weight


class LoraTensors:
    """Tensors with one adapter, whose change is multiplied with `weight`.

    Args:
        turned: linear layers are stored `(in, out)`. The adapter's `fan_in_fan_out` says so too,
            but PEFT goes by the layer where they differ.

    Raises:
        CheckpointError: it cannot be read, is of another kind, or does not fit.
    """

    def __init__(
        self,
        tensors: Tensors,
        plain: Names,
        folder: Path,
        weight: float = 1.0,
        turned: bool = False,
    ):
        self._plain, self._turned = plain, turned
        self._tensors, self._folder, self.weight = tensors, folder, weight
        self.settings = settings = read_mapping(folder / SETTINGS, CheckpointError)
        if settings.get("peft_type", "LORA") != "LORA" or settings.get("use_dora"):
            kind = "DoRA" if settings.get("use_dora") else cell(settings["peft_type"])
            raise CheckpointError(f"{folder} is an adapter of the kind {kind}, not LoRA")
        self.files = WeightFiles(folder, FILES)
        self._names = plain.of_all(tensors.names())
        self._changes: dict[str, Change] = {}
        self._whole: dict[str, str] = {}
        for name in self.files.names():
            self._add(name, settings, weight)
        for name in [*self._changes, *self._whole]:
            self._check(name)

    def names(self) -> list[str]:
        new = [stored for plain, stored in self._whole.items() if plain not in self._names]
        return self._tensors.names() + new

    def stored(self, name: str) -> Stored:
        whole = self._whole.get(self._plain(name))
        return self.files.stored(whole) if whole else self._tensors.stored(name)

    def tensor(self, name: str) -> torch.Tensor:
        plain = self._plain(name)
        if plain in self._whole:
            return self.files.tensor(self._whole[plain])
        tensor = self._tensors.tensor(name)
        change = self._changes.get(plain)
        if change is None:
            return tensor
        delta = self.files.tensor(change.b).float() @ self.files.tensor(change.a).float()
        delta = (delta.T if change.turned else delta) * change.scale
        return (tensor.float() + delta).to(tensor.dtype)

    def _add(self, name: str, settings: dict[str, Any], weight: float) -> None:
        """What a stored tensor is for."""
        ending = next((e for e in MATRICES if name.endswith(e)), None)
        if ending is None:
            if any(name.endswith(b) for b in MATRICES.values()):
                return
            if ".lora_" in name:
                raise CheckpointError(
                    f"{name} in {self._folder} is of a kind of LoRA not supported"
                )
            if not name.startswith(PREFIX):
                raise CheckpointError(f"{name} in {self._folder} is no tensor of a LoRA adapter")
            plain = name.replace(".modules_to_save.", ".").replace(".base_layer.", ".")
            self._whole[self._plain(plain)] = name
            return
        module = name.removesuffix(ending)
        rank = self.files.stored(name).shape[0]
        other = module + MATRICES[ending]
        if other not in self.files.names():
            raise CheckpointError(f"{name} in {self._folder} has no {MATRICES[ending]} beside it")
        plain = self._plain(f"{module}.weight")
        turned = "embedding" in ending or self._turned
        self._changes[plain] = Change(name, other, weight * _scale(plain, rank, settings), turned)

    def _check(self, plain: str) -> None:
        """Whether a change fits what it changes."""
        if plain in self._whole and plain not in self._names:
            return
        if plain not in self._names:
            raise CheckpointError(f"LoRA adapter {self._folder} changes {plain}, which is missing")
        wanted = self._tensors.stored(self._names[plain]).shape
        if plain in self._whole:
            found = self.files.stored(self._whole[plain]).shape
        else:
            change = self._changes[plain]
            a, b = self.files.stored(change.a).shape, self.files.stored(change.b).shape
            fits = len(a) == len(b) == 2 and a[0] == b[1]
            found = (b[0], a[1]) if fits else (*b, *a)
            found = found[::-1] if change.turned else found
        if found != wanted:
            raise CheckpointError(
                f"LoRA adapter {self._folder} has {plain} of shape {shown(found)}, the checkpoint "
                f"of {shown(wanted)}"
            )


def _scale(plain: str, rank: int, settings: dict[str, Any]) -> float:
    alpha = _of_module(plain, settings, "lora_alpha", "alpha_pattern")
    said = _of_module(plain, settings, "r", "rank_pattern")
    if type(alpha) not in (int, float) or not rank:
        raise CheckpointError(f"lora_alpha {shown(alpha)} of rank {rank} is not possible")
    if type(said) is not int or said != rank:
        raise CheckpointError(
            f"the LoRA adapter's r is {shown(said)}, its matrices for {plain} are of rank {rank}"
        )
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _of_module(plain: str, settings: dict[str, Any], name: str, patterns: str) -> Any:
    """A setting, where a pattern may give a module another value; PEFT's default is 8."""
    found = settings.get(name, 8)
    for key, value in (settings.get(patterns) or {}).items():
        if re.fullmatch(rf"(.*\.)?{re.escape(key.lstrip('^'))}", plain.removesuffix(".weight")):
            found = value
    return found
