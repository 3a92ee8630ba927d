"""A checkpoint's tensors against the settings, before anything is allocated or read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from utils.checkpoints.weight_files import FLOATS, CheckpointError, Stored
from utils.escaping import cell, shown

HEAD = "lm_head.weight"
MOST_NAMED = 3

KINDS = {
    "LoRA": ("lora_", "base_layer"),
    "other heads": ("score.", "classifier.", "qa_outputs.", "v_head.", "value_head."),
    "attention masks": ("masked_bias", "attn.bias", "attention.bias_"),
    "optimiser states": ("exp_avg", "optimizer."),
}
"""What unused tensors are, by a part of their names."""

logger = logging.getLogger(__name__)


def check_tensors(
    stored: Mapping[str, Stored], shapes: Mapping[str, tuple[int, ...]], folder: Path
) -> None:
    """Return if every tensor of the model is there, of its shape, in floats.

    Args:
        stored: transformers' name -> what its file says of it.
        shapes: of the model's tensors, by name.

    Raises:
        CheckpointError: one line with the tensor, its file, and what it should be.
    """
    _refuse_unmerged(stored)
    missing = [name for name in shapes if name not in stored and name != HEAD]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        like = next((s.name for n, s in stored.items() if n not in shapes), None)
        hint = f"; there is a tensor {shown(like)}" if like else ""
        raise CheckpointError(f"checkpoint {folder} lacks tensor {missing[0]}{others}{hint}")
    modules = {name[:at] for name in shapes for at, sign in enumerate(name) if sign == "."}
    for name in modules & stored.keys():
        raise CheckpointError(f"{stored[name]} is a tensor, where the model has a module")
    for name, shape in shapes.items():
        if name in stored:
            _check(stored[name], shape)
    _tell_unused([s.name for name, s in stored.items() if name not in shapes], folder)


def _check(found: Stored, shape: tuple[int, ...]) -> None:
    if found.shape != shape:
        turned = " (it is transposed)" if found.shape == shape[::-1] and len(shape) > 1 else ""
        raise CheckpointError(
            f"{found} has shape {shown(found.shape)}, config.json says {shape}{turned}"
        )
    if found.dtype not in FLOATS:
        raise CheckpointError(
            f"{found} is of type {cell(found.dtype)}, not of floats ({', '.join(FLOATS)}): "
            "give a checkpoint that is not quantised this way"
        )


def _refuse_unmerged(stored: Mapping[str, Stored]) -> None:
    for found in stored.values():
        if ".base_layer." in found.name and "adapter" not in found.file.name:
            raise CheckpointError(
                f"{found} belongs to a LoRA adapter that is not merged: save the model after "
                "merge_and_unload(), or give the base model with --lora ADAPTER"
            )


def _tell_unused(names: list[str], folder: Path) -> None:
    """One line on what is in the checkpoint and nobody uses."""
    if not names:
        return
    kinds = Counter(
        next((kind for kind, parts in KINDS.items() if any(p in name for p in parts)), "")
        for name in names
    )
    told = [f"{count} of {kind}" for kind, count in kinds.items() if kind]
    if kinds[""]:
        unknown = [n for n in names if not any(p in n for ps in KINDS.values() for p in ps)]
        told.append(", ".join(cell(name) for name in unknown[:MOST_NAMED]))
        if kinds[""] > MOST_NAMED:
            told[-1] += f" and {kinds[''] - MOST_NAMED} more"
    logger.warning(
        "%d tensors of checkpoint %s are not used: %s", len(names), folder, "; ".join(told)
    )
