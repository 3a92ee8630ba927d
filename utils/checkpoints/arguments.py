"""The command line of what runs a model: without a preset, a checkpoint's own settings count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from config import REPOSITORY, BloomConfig, ExecutionConfig, ModelConfig, parse_arguments
from config.options import is_given

AS_MADE = ("precision", "weight_precision", "group_size")
"""Settings that memory maps are made with."""


def parse_model_arguments(
    argv: Sequence[str] | None = None, *, makes_maps: bool = False, **about: Any
) -> tuple[BloomConfig, Any]:
    """As `config.parse_arguments`, where `--hf_model` alone is enough to run any checkpoint.

    Args:
        makes_maps: `--memmap_dir` is where maps are written, and none are read.

    Raises:
        ConfigError, CheckpointError: for settings, or a checkpoint, that are not possible.
    """
    of_model = (lambda hf_model, _: model_of(hf_model)) if makes_maps else model_of
    return parse_arguments(argv, model_of=of_model, **about)


def with_defaults(
    config: BloomConfig, values: Mapping[str, Any], argv: Sequence[str]
) -> BloomConfig:
    """The settings with a script's own defaults of how it is executed.

    They count where neither command line nor preset say anything else.
    """
    execution, default = config.execution, ExecutionConfig()
    changed = {
        name: value
        for name, value in values.items()
        if getattr(execution, name) == getattr(default, name) and not is_given(name, argv)
    }
    return config.changed(**changed)


def described(config: BloomConfig) -> Path:
    """Where the files are that describe the configured model: its maps, folder, or GGUF file.

    Raises:
        CheckpointError: it cannot be found or fetched.
    """
    from utils.checkpoints.hub import described_folder  # late, as in `model_of`

    if config.execution.memmap_dir is not None:
        return Path(config.execution.memmap_dir).expanduser()
    return described_folder(config.model.hf_model)


def model_of(hf_model: str, memmap_dir: str | None = None) -> ModelConfig:
    """The settings of a checkpoint: a folder, a `.gguf` file, or an id of the Hugging Face hub.

    Args:
        memmap_dir: maps of it, which are looked at in its place.

    Raises:
        UserError: it cannot be found or read, or is of another family.
    """
    from utils.checkpoints.gguf_file import SUFFIX, GgufFile  # late: it takes torch
    from utils.checkpoints.gptq import group_size_of
    from utils.checkpoints.hub import described_folder
    from utils.checkpoints.memmap.verification import open_manifest
    from utils.checkpoints.model_settings import model_settings
    from utils.checkpoints.quantised_forms import settings_of
    from utils.checkpoints.weight_files import CheckpointError
    from utils.outside import read_mapping

    if memmap_dir is not None:
        folder = Path(memmap_dir).expanduser()
        values = read_mapping(folder / "config.json", CheckpointError)
        found = model_settings(values, folder / "config.json")
        made = open_manifest(folder).settings  # in another precision, perhaps
        found |= {name: made[name] for name in AS_MADE if made.get(name) is not None}
        return ModelConfig(hf_model=hf_model, **found)
    shipped = REPOSITORY / hf_model
    path = described_folder(str(shipped) if shipped.is_dir() else hf_model)
    if path.suffix == SUFFIX:
        return ModelConfig(hf_model=hf_model, **model_settings(GgufFile(path).config, path))
    values = read_mapping(path / "config.json", CheckpointError)
    settings = model_settings(values, path / "config.json")
    size = group_size_of(settings_of(path, values)[0])
    if size is not None:  # so that its 4 bits may be taken as they are
        settings["group_size"] = size
    return ModelConfig(hf_model=hf_model, **settings)
