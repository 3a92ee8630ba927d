"""The settings of a model, from its checkpoint's config.json, as transformers takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config import MODEL_TYPES, ConfigError, ModelConfig
from config.config import PRECISIONS
from modelling.architecture import architecture
from utils.checkpoints.weight_files import CheckpointError
from utils.escaping import cell, shown, table

DEFAULT_TYPE = "bloom"
"""The model type of a config.json that does not say."""

KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


def model_settings(values: Mapping[str, Any], place: str | Path) -> dict[str, Any]:
    """Settings of `ModelConfig` by name.

    Args:
        values: the content of config.json.
        place: that file, for errors.

    Raises:
        CheckpointError: it is of another family, or a value is of a wrong type.
    """
    family = values.get("model_type", DEFAULT_TYPE)
    try:
        of = architecture(family)
    except ConfigError:
        raise CheckpointError(
            f"{place} is of a model of the family {cell(family)}, this program runs "
            f"{', '.join(MODEL_TYPES)}"
        ) from None
    found = {
        name: _value(spelled, default, values, place)
        for name, (spelled, default) in of.settings.items()
    }
    return {"model_type": family, **found}


def differences(
    config: ModelConfig, found: Mapping[str, Any], values: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """(setting, its configured value, the checkpoint's), for those that differ.

    Args:
        found: the checkpoint's settings.
        values: the content of its config.json.
    """
    if config.model_type != found["model_type"]:
        return [("model_type", config.model_type, found["model_type"])]
    of = architecture(config.model_type)
    rows = [(name, getattr(config, name), found[name]) for name in of.exact]
    rows += [(name, want, values.get(name, want)) for name, want in of.fixed_settings.items()]
    return [
        (name, shown(ours), shown(theirs)) for name, ours, theirs in rows if not _same(ours, theirs)
    ]


def as_table(rows: list[tuple[str, str, str]]) -> str:
    """Differences for a person."""
    cells = [("setting", "configuration", "checkpoint"), *rows]
    lines = table(cells, between=" | ")
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join([lines[0], "-+-".join("-" * width for width in widths), *lines[1:]])


def _value(
    spellings: tuple[str, ...], default: Any, values: Mapping[str, Any], place: str | Path
) -> Any:
    given = {s: values[s] for s in spellings if values.get(s) is not None}
    if default in PRECISIONS:
        value = str(next(iter(given.values()), default)).removeprefix("torch.")
        return value if value in PRECISIONS else default  # float64, auto: as it is computed here
    kind = type(default)
    for spelling, value in given.items():  # also those that the first one outweighs
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise CheckpointError(f"{place}: {spelling} must be {KINDS[kind]}, not {shown(value)}")
    return next(iter(given.values()), default)


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float | int):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return type(ours) is type(theirs) and ours == theirs
