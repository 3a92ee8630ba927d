"""A checkpoint in Hugging Face format, read tensor by tensor.

Tensors are mapped from their files, so holding a checkpoint open takes next to no memory: the
sharded copy that is made from it is the only one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from config import BloomConfig, ModelConfig
from modelling.architecture import architecture
from utils.checkpoints.check import HEAD, check_tensors
from utils.checkpoints.gguf_file import SUFFIX, GgufFile
from utils.checkpoints.hub import checkpoint_folder
from utils.checkpoints.lora import LoraTensors, parsed
from utils.checkpoints.model_settings import as_table, differences, model_settings
from utils.checkpoints.names import Names
from utils.checkpoints.quantised_forms import dequantised, settings_of
from utils.checkpoints.weight_files import CheckpointError, Tensors, WeightFiles
from utils.outside import read_mapping

__all__ = ["Checkpoint", "CheckpointError", "MissingTensorError", "open_checkpoint"]

PREFIX = "transformer."
ROWS_COMPARED = 4096


class MissingTensorError(CheckpointError, AttributeError):
    """A tensor that the checkpoint does not have. An AttributeError too, for `hasattr`."""


def open_checkpoint(hf_model: str | Path, *, lora: Sequence[str] = ()) -> Checkpoint:
    """The checkpoint in the folder `hf_model`, or of that model id on the Hugging Face hub.

    Args:
        lora: folders of adapters that are merged into it, each `FOLDER` or `FOLDER=WEIGHT`.

    Raises:
        CheckpointError: when it cannot be found, fetched or read.
    """
    return Checkpoint(checkpoint_folder(hf_model), lora)


class Checkpoint:
    """The tensors and settings of one folder.

    Tensor names are those of transformers, with or without ``transformer.``:
    ``h.0.mlp.dense_h_to_4h.weight``. It does not matter which of the two the files have.

    Attributes:
        config: the content of config.json.
        settings: those of `ModelConfig` that it has.
        plain: gives transformers' name of a stored tensor.
        identity: what tells it from others where that is not to be found in files.
    """

    identity: str | None = None

    def __init__(self, path: Path, lora: Sequence[str] = ()):
        self.path = path
        self.files: WeightFiles | GgufFile
        if path.suffix == SUFFIX:
            self.files = GgufFile(path)
            self.config = self.files.config
            self._tensors: Tensors = self.files
        else:
            self.config = read_mapping(path / "config.json", CheckpointError)
            self.files = WeightFiles(path)
            self._tensors = dequantised(self.files, *settings_of(path, self.config))
        self._weights = self._tensors  # without adapters
        self.settings = model_settings(self.config, path / "config.json")
        self._architecture = architecture(self.settings["model_type"])
        model = ModelConfig(hf_model=str(path), **self.settings)
        self.plain = Names(self._architecture.tensor_shapes(model))
        self.adapters: list[LoraTensors] = []
        for adapter in lora:
            turned = self._architecture.turned_linear
            self._tensors = LoraTensors(self._tensors, self.plain, *parsed(adapter), turned)
            self.adapters.append(self._tensors)
        self._stored = self.plain.of_all(self._tensors.names())

    @property
    def size(self) -> int:
        """Bytes of the files of weights."""
        return sum(path.stat().st_size for path in self.files.files)

    @property
    def form(self) -> str:
        """How the weights are stored, for a person."""
        kind = self.files.files[0].suffix.removeprefix(".")
        adapters = f"{len(self.adapters)} LoRA" if self.adapters else None
        return ", ".join(filter(None, [kind, getattr(self._weights, "form", None), adapters]))

    def mapped_in(self, config: BloomConfig) -> bool:
        """Whether a session of this configuration uses its files where they are mapped.

        Otherwise weights are made of them, which lie in memory.
        """
        as_stored = self._tensors is self.files and self.files.mapped
        if not as_stored or config.model.quantized or config.execution.replicas > 1:
            return False
        types = {self._tensors.stored(name).dtype for name in self._stored.values()}
        return types == {config.model.precision}

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
        return self._tensors.tensor(stored)

    @cached_property
    def tied(self) -> bool:
        """Whether the head is the embedding: not stored, or stored with the same values."""
        if HEAD in self._stored:
            return _equal(self.tensor(HEAD), self.tensor(self._architecture.table))
        if self.config.get("tie_word_embeddings", True) is False:
            raise MissingTensorError(
                f"no tensor {HEAD} in checkpoint {self.path}, whose config.json says "
                "tie_word_embeddings is false"
            )
        return True

    def lm_head(self) -> torch.Tensor:
        """The weights of the head, those of the embedding if tied: `[vocab_size, hidden_size]`."""
        return self.tensor(self._architecture.table if self.tied else HEAD)

    def module(self, prefix: str = "") -> CheckpointModule:
        """A view that is read like the transformers module `prefix`: ``module("h.0").mlp``."""
        return CheckpointModule(self, f"{prefix}.".removeprefix(PREFIX).rstrip("."))

    def check_against(self, config: BloomConfig) -> None:
        """Return if the checkpoint is of the model that `config` describes.

        From then on, a tensor of another shape than that model's is refused.

        Raises:
            CheckpointError: with a table of all differences.
        """
        found = differences(config.model, self.settings, self.config)
        if found:
            raise CheckpointError(
                f"checkpoint {self.path} is not the model that is configured:\n{as_table(found)}\n"
                "Set what differs to the checkpoint's values, leave --config out, which takes them "
                "from the checkpoint, or give another --hf_model."
            )
        stored = {name: self._tensors.stored(where) for name, where in self._by_file()}
        shapes = self._architecture.tensor_shapes(config.model)
        check_tensors(stored, shapes, self.path)

    def decided(self, config: BloomConfig) -> BloomConfig:
        """The configuration with what the checkpoint alone knows: its head and its shortcuts."""
        return config.changed(
            tie_word_embeddings=self.tied,
            residual_after_norm=self.settings.get("residual_after_norm", False),
        )

    def _by_file(self) -> list[tuple[str, str]]:
        """Names, plain and stored, so that each file is opened once."""
        return sorted(self._stored.items(), key=lambda item: str(self.files.place(item[1])))


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
