"""Telling checkpoints apart by what is in them, wherever they are and in whichever file format."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from utils.checkpoints.checkpoint import Checkpoint
from utils.checkpoints.gguf_file import GgufFile
from utils.checkpoints.names import Names
from utils.checkpoints.weight_files import WeightFiles

WHOLE = 1 << 16
"""Tensors of up to so many bytes are compared whole, larger ones by samples."""

SAMPLES, SAMPLE = 5, 1 << 12
"""Number of samples of a large tensor, from its first to its last byte, and bytes of each."""


def fingerprint(checkpoint: Checkpoint) -> str:
    """A hash of the checkpoint's settings and tensors: names, types, shapes and samples of values.

    Two checkpoints of one shape differ in it as soon as training has touched their tensors; telling
    them apart by every value would take as long as making the maps.

    Raises:
        CheckpointError: where a tensor cannot be read.
    """
    lines = _lines(checkpoint.config, checkpoint.files, checkpoint.plain)
    for adapter in checkpoint.adapters:
        lines += [
            f"adapter {adapter.weight}",
            *_lines(adapter.settings, adapter.files, checkpoint.plain),
        ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _lines(settings: dict[str, Any], files: WeightFiles | GgufFile, plain: Names) -> list[str]:
    digests = {plain(name): _digest(files.tensor(name)) for name in files.names()}
    named = (f"{name} {digests[name]}" for name in sorted(digests))
    return [json.dumps(settings, sort_keys=True), *named]


def _digest(tensor: torch.Tensor) -> str:
    flat = tensor.detach().reshape(-1)
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    for begin, end in _samples(flat.numel(), flat.element_size()):
        digest.update(flat[begin:end].view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _samples(count: int, itemsize: int) -> list[tuple[int, int]]:
    """Ranges of elements."""
    if count * itemsize <= WHOLE:
        return [(0, count)]
    size = SAMPLE // itemsize
    starts = (number * (count - size) // (SAMPLES - 1) for number in range(SAMPLES))
    return [(start, start + size) for start in starts]
