"""The settings of a model, from its checkpoint's config.json, as transformers takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config import ModelConfig
from utils.checkpoints.weight_files import CheckpointError
from utils.escaping import cell, shown

MODEL_TYPE = "bloom"
PRECISIONS = ("float32", "float16", "bfloat16")
CONTEXT = 2048
"""Tokens of context where config.json says nothing: BLOOM was trained on so many."""

SPELLINGS: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer"),
    "hidden_size": ("n_embed", "hidden_size"),
    "heads": ("num_attention_heads", "n_head"),
    "vocab_size": ("vocab_size",),
    "layer_norm_epsilon": ("layer_norm_epsilon",),
    "residual_after_norm": ("apply_residual_connection_post_layernorm",),
    "tie_word_embeddings": ("tie_word_embeddings",),
    "sequence_length": ("seq_length",),
    "precision": ("dtype", "torch_dtype"),
}
"""Our name of a setting -> its names in config.json. Of several the first counts, as it does for
transformers' `BloomConfig`."""

DEFAULTS: dict[str, Any] = {
    "layers": 2,
    "hidden_size": 64,
    "heads": 8,
    "vocab_size": 250880,
    "layer_norm_epsilon": 1e-5,
    "residual_after_norm": False,
    "tie_word_embeddings": True,
    "sequence_length": CONTEXT,
    "precision": "float32",
}
"""What transformers takes where config.json says nothing."""

KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
SHAPE = ("layers", "hidden_size", "heads", "vocab_size", "layer_norm_epsilon")
"""What must be as configured; of the rest the checkpoint decides, or it is how the model is run."""


def model_settings(values: Mapping[str, Any], place: str | Path) -> dict[str, Any]:
    """Settings of `ModelConfig` by name.

    Args:
        values: the content of config.json.
        place: that file, for errors.

    Raises:
        CheckpointError: it is of another family, or a value is of a wrong type.
    """
    family = values.get("model_type", MODEL_TYPE)
    if family != MODEL_TYPE:
        raise CheckpointError(
            f"{place} is of a model of the family {cell(family)}, this program runs {MODEL_TYPE}"
        )
    return {name: _value(name, values, place) for name in SPELLINGS}


def differences(config: ModelConfig, found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(setting, its configured value, the checkpoint's), for those that differ."""
    return [
        (name, shown(getattr(config, name)), shown(found[name]))
        for name in SHAPE
        if not _same(getattr(config, name), found[name])
    ]


def table(rows: list[tuple[str, str, str]]) -> str:
    """Differences for a person."""
    cells = [("setting", "configuration", "checkpoint"), *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    lines = [
        " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    return "\n".join(lines)


def _value(name: str, values: Mapping[str, Any], place: str | Path) -> Any:
    spelling = next((s for s in SPELLINGS[name] if values.get(s) is not None), None)
    default = DEFAULTS[name]
    if spelling is None:
        return default
    value = values[spelling]
    if name == "precision":
        value = str(value).removeprefix("torch.")
        return value if value in PRECISIONS else default  # float64, auto: as it is computed here
    kind = type(default)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise CheckpointError(f"{place}: {spelling} must be {KINDS[kind]}, not {shown(value)}")
    return value


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return type(ours) is type(theirs) and ours == theirs
