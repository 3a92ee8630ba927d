"""A checkpoint in Hugging Face format, read tensor by tensor.

Tensors are mapped from their files, so holding a checkpoint open takes next to no memory: the
sharded copy that is made from it is the only one.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from config import BloomConfig, ConfigError
from modelling.architecture import architecture, architecture_of
from utils.checkpoints.hub import checkpoint_folder
from utils.checkpoints.weight_files import CheckpointError, WeightFiles
from utils.escaping import cell, shown
from utils.outside import read_mapping

__all__ = ["Checkpoint", "CheckpointError", "MissingTensorError", "open_checkpoint"]

PREFIX = "transformer."
HEAD = "lm_head.weight"
ROWS_COMPARED = 4096
DEFAULT_TYPE = "bloom"
"""The model type of a config.json that does not say."""


class MissingTensorError(CheckpointError, AttributeError):
    """A tensor that the checkpoint does not have. An AttributeError too, for `hasattr`."""


def open_checkpoint(hf_model: str | Path, *, progress: bool = True) -> Checkpoint:
    """The checkpoint in the folder `hf_model`, or of that model id on the Hugging Face hub.

    `progress` shows a bar on stderr while it is fetched.

    Raises:
        CheckpointError: when it cannot be found, fetched or read.
    """
    return Checkpoint(checkpoint_folder(hf_model, progress=progress))


class Checkpoint:
    """The tensors and settings of one folder.

    Tensor names are those of transformers, with or without ``transformer.``:
    ``h.0.mlp.dense_h_to_4h.weight``. It does not matter which of the two the files have.
    """

    def __init__(self, path: Path):
        self.path = path
        self.config = read_mapping(path / "config.json", CheckpointError)
        self._files = WeightFiles(path)
        self._shapes: dict[str, tuple[int, ...]] = {}  # those wanted, once that is known
        self._stored = {name.removeprefix(PREFIX): name for name in self._files.names()}

    def keys(self) -> list[str]:
        """Names of the stored tensors, without ``transformer.``."""
        return list(self._stored)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor `name`, of the shape and type it is stored in. It must not be written to.

        Raises:
            MissingTensorError: when the checkpoint does not have it.
            CheckpointError: when its file cannot be read.
        """
        stored = self._stored.get(name.removeprefix(PREFIX))
        if stored is None:
            raise MissingTensorError(f"no tensor {name} in checkpoint {self.path}")
        tensor = self._files.tensor(stored)
        wanted = self._shapes.get(name.removeprefix(PREFIX), tensor.shape)
        if tensor.shape != wanted:
            found = f"{name} in checkpoint {self.path} has shape {shown(tuple(tensor.shape))}"
            raise CheckpointError(f"{found}, its config.json says {wanted}")
        return tensor

    @cached_property
    def tied(self) -> bool:
        """Whether the head is the embedding: not stored, or stored with the same values."""
        if HEAD in self._stored:
            return _equal(self.tensor(HEAD), self.tensor(self._table))
        if self.config.get("tie_word_embeddings", True) is False:
            raise MissingTensorError(
                f"no tensor {HEAD} in checkpoint {self.path}, whose config.json says "
                "tie_word_embeddings is false"
            )
        return True

    def lm_head(self) -> torch.Tensor:
        """The weights of the head, those of the embedding if tied: `[vocab_size, hidden_size]`."""
        return self.tensor(self._table if self.tied else HEAD)

    @cached_property
    def _table(self) -> str:
        """The name of the embedding's weight."""
        try:
            return architecture(self.config.get("model_type", DEFAULT_TYPE)).table
        except ConfigError as error:
            raise CheckpointError(f"checkpoint {self.path} is of no known model: {error}") from None

    def module(self, prefix: str = "") -> CheckpointModule:
        """A view that is read like the transformers module `prefix`: ``module("h.0").mlp``."""
        return CheckpointModule(self, f"{prefix}.".removeprefix(PREFIX).rstrip("."))

    def check_against(self, config: BloomConfig) -> None:
        """Return if the checkpoint is of the model that `config` describes.

        From then on, a tensor of another shape than that model's is refused.

        Raises:
            CheckpointError: with a table of all differences.
        """
        differences = _differences(config, self.config)
        if differences:
            raise CheckpointError(
                f"checkpoint {self.path} is not the model that is configured:\n"
                f"{_table(differences)}\n"
                "Set what differs to the checkpoint's values, or give another --hf_model."
            )
        self._shapes = architecture_of(config).tensor_shapes(config.model)
        modules = {
            name[:at] for name in self._shapes for at, sign in enumerate(name) if sign == "."
        }
        if both := modules & self._stored.keys():
            raise CheckpointError(
                f"checkpoint {self.path} has a tensor {min(both)}, where the model has a module"
            )


class CheckpointModule:
    """A module of a checkpoint: attributes are tensors, read on access, or inner modules.

    It stands in for the transformers module of that name: ``module.h[0].input_layernorm.weight``,
    also ``module.transformer.h`` and ``module.lm_head.weight`` from the root.
    """

    def __init__(self, checkpoint: Checkpoint, prefix: str):
        self._checkpoint = checkpoint
        self._prefix = prefix

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name == PREFIX.removesuffix(".") and not self._prefix:
            return self
        full = f"{self._prefix}.{name}" if self._prefix else name
        keys = self._checkpoint.keys()
        if full == HEAD:
            return self._checkpoint.lm_head()
        if full in keys:
            return self._checkpoint.tensor(full)
        if full == HEAD.removesuffix(".weight") or any(key.startswith(f"{full}.") for key in keys):
            return CheckpointModule(self._checkpoint, full)
        raise MissingTensorError(f"no tensor {full} in checkpoint {self._checkpoint.path}")

    def __getitem__(self, index: int) -> CheckpointModule:
        """The layer `index` of a list of layers."""
        try:
            return getattr(self, str(index))
        except MissingTensorError as error:
            raise IndexError(str(error)) from error


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether all values are equal, found out without temporaries of the whole size."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.data_ptr() == b.data_ptr():  # a `.bin` file stores tied tensors once
        return True
    pairs = zip(a.split(ROWS_COMPARED), b.split(ROWS_COMPARED), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


def _differences(config: BloomConfig, checkpoint: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(setting, its value in the configuration, in the checkpoint), for those that differ."""
    of = architecture_of(config)
    model_type = checkpoint.get("model_type", DEFAULT_TYPE)
    rows: list[tuple[str, Any, Any]] = [("model_type", config.model.model_type, model_type)]
    rows += [(name, want, checkpoint.get(name, want)) for name, want in of.fixed_settings.items()]
    for name, aliases in of.shape_settings.items():
        found = [checkpoint[alias] for alias in aliases if alias in checkpoint]
        rows.append((name, getattr(config.model, name), found[0] if found else "not given"))
    different = [row for row in rows if row[1] != row[2]]
    ours, theirs = config.model.layer_norm_epsilon, checkpoint.get("layer_norm_epsilon", 1e-5)
    if not (isinstance(theirs, int | float) and math.isclose(ours, theirs, rel_tol=1e-6)):
        different.append(("layer_norm_epsilon", ours, theirs))
    return different


def _table(rows: list[tuple[str, Any, Any]]) -> str:
    header = ("setting", "configuration", "checkpoint")
    cells = [header, *(tuple(cell(value) for value in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    return "\n".join(lines)
