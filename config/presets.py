"""Named presets: settings read from YAML, changed by name, and written back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from config.config import (
    REPOSITORY,
    BloomConfig,
    ConfigError,
    ExecutionConfig,
    ModelConfig,
    setting_names,
)
from config.options import cut, nearest
from utils.escaping import cell, shown
from utils.outside import read_yaml

PRESETS_FILE = Path(__file__).resolve().with_name("inference.yml")
DEFAULT_PRESET = "bloom_tiny"
SECTIONS = {"model": ModelConfig, "execution": ExecutionConfig}


def load_config(
    preset: str | None = None,
    overrides: dict[str, Any] | None = None,
    file: str | Path = PRESETS_FILE,
) -> BloomConfig:
    """The validated configuration `preset` of `file`, with settings changed by `overrides`.

    Without a name, it is `bloom_tiny`, or the file's only preset. `overrides` maps flat setting
    names to values: ``load_config("bloom_tiny", {"layers": 2, "tensor_parallel_1": 2})``.

    Raises:
        ConfigError: for an unknown preset or setting, or a value that is not possible.
    """
    overrides = overrides or {}
    _check_keys(overrides, sum(map(setting_names, SECTIONS.values()), []), "the overrides")
    values = {name: _coerced(value) for name, value in overrides.items()}
    return resolve(read_preset(preset, Path(file)).changed(**values))


def read_preset(name: str | None, file: Path) -> BloomConfig:
    """The preset as it is written, not validated: command lines may yet change it."""
    presets = _read_presets(file)
    if name is None:
        name = next(iter(presets)) if len(presets) == 1 else DEFAULT_PRESET
    name = _named(name, presets, file)
    place = f"preset {name!r} of {file}"
    sections = _mapping(presets[name], place)
    _check_keys(sections, SECTIONS, place)
    return BloomConfig(
        **{key: _section(kind, sections.get(key, {}), place) for key, kind in SECTIONS.items()}
    )


def _named(name: str, presets: Iterable[str], file: Path) -> str:
    """The preset's name as the file spells it: capitals make no difference."""
    if name in presets:
        return name
    found = [known for known in presets if known.lower() == name.lower()]
    if len(found) != 1:
        raise ConfigError(
            f"unknown preset {cut(name)!r} in {file}{nearest(name, presets)}; "
            f"known: {', '.join(map(cell, presets))}"
        )
    return found[0]


def resolve(config: BloomConfig) -> BloomConfig:
    """The configuration validated, its `hf_model` found from whichever folder is current.

    A relative folder that is not in the current folder but in the repository becomes absolute.
    """
    config.validate()
    shipped = REPOSITORY / config.model.hf_model
    try:
        if Path(config.model.hf_model).exists() or not shipped.is_dir():
            return config
    except OSError as error:  # a name that no file can have
        given = shown(config.model.hf_model)
        raise ConfigError(f"hf_model cannot be {given}: {error.strerror}") from None
    return config.changed(hf_model=str(shipped))


def to_yaml(config: BloomConfig) -> str:
    """The settings as YAML: as a file of its own, a preset that is named after the file."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def _read_presets(file: Path) -> dict[str, Any]:
    """Preset name -> its sections. A file of bare sections is one preset, named after the file."""
    presets = _mapping(read_yaml(file, ConfigError), str(file))
    return {file.stem: presets} if "model" in presets else presets


def _section(kind: type, settings: Any, place: str) -> Any:
    settings = _mapping(settings, f"each section of {place}")
    _check_keys(settings, setting_names(kind), place)
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in settings]:
        raise ConfigError(f"{place} lacks {', '.join(missing)}")
    return kind(**{name: _coerced(value) for name, value in settings.items()})


def _mapping(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{place} must map names to values, not be a {type(value).__name__}")
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"{place} must have texts as names, not {key!r}")
    return value


def _check_keys(given: Iterable[str], allowed: Iterable[str], place: str) -> None:
    if unknown := [cell(key) for key in given if key not in allowed]:
        raise ConfigError(f"unknown {', '.join(unknown)} in {place}; known: {', '.join(allowed)}")


def _coerced(value: Any) -> Any:
    """YAML has lists where the settings have tuples."""
    return tuple(value) if isinstance(value, list) else value
