"""The names of a checkpoint's tensors, whatever a training framework has put in front of them."""

from __future__ import annotations

from collections.abc import Iterable

from utils.checkpoints.weight_files import CheckpointError
from utils.escaping import shown

PREFIXES = ("module.", "_orig_mod.", "base_model.model.", "model.", "transformer.")
"""Of DataParallel, torch.compile, PEFT, Lightning, and transformers itself."""

MODULES = ("word_embeddings.", "word_embeddings_layernorm.", "h.", "ln_f.", "lm_head.")
"""What the tensors of a BLOOM model begin with."""


def plain_name(stored: str) -> str:
    """The name in transformers' `BloomModel` where it is one of a known tensor, else as stored."""
    name = stored
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name if name.startswith(MODULES) else stored


def plain_names(stored: Iterable[str]) -> dict[str, str]:
    """Plain name -> the name it is stored under.

    Raises:
        CheckpointError: two names mean one tensor.
    """
    found: dict[str, str] = {}
    for name in stored:
        first = found.setdefault(plain_name(name), name)
        if first != name:
            raise CheckpointError(f"tensors {shown(first)} and {shown(name)} mean the same one")
    return found
