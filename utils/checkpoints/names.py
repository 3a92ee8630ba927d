"""The names of a checkpoint's tensors, whatever a training framework has put in front of them."""

from __future__ import annotations

from collections.abc import Iterable

from utils.checkpoints.weight_files import CheckpointError
from utils.escaping import shown

PREFIXES = ("module.", "_orig_mod.", "base_model.model.", "model.", "transformer.")
"""Of DataParallel, torch.compile, PEFT, Lightning, and transformers itself."""


class Names:
    """Tells stored names from those that transformers has, without ``transformer.``.

    Args:
        tensors: the names of the model's tensors.
    """

    def __init__(self, tensors: Iterable[str]):
        self._modules = tuple({f"{name.partition('.')[0]}." for name in tensors})

    def __call__(self, stored: str) -> str:
        """transformers' name, where it is in one of the model's modules; else as it is stored."""
        name = stored
        while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
            name = name.removeprefix(prefix)
        return name if name.startswith(self._modules) else stored

    def of_all(self, stored: Iterable[str]) -> dict[str, str]:
        """transformers' name -> the name that it is stored under.

        Raises:
            CheckpointError: two names mean one tensor.
        """
        found: dict[str, str] = {}
        for name in stored:
            first = found.setdefault(self(name), name)
            if first != name:
                raise CheckpointError(f"tensors {shown(first)} and {shown(name)} mean the same one")
        return found
