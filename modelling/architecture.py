"""What a kind of model brings: its builders, and what its checkpoints look like.

Each is a folder beside this file, called as `model_type` in its checkpoints' config.json. The
folder's `__init__` has the `ARCHITECTURE`; nothing else lists the models there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from config import MODEL_TYPES, BloomConfig, ConfigError, ModelConfig

EXACT = ("layers", "hidden_size", "heads", "vocab_size", "layer_norm_epsilon")


@dataclass(frozen=True)
class Architecture:
    """A kind of model. The builders are classes derived from `addons.Module`.

    Each builder is made with the configuration and has `hf_mapping(config, variables, hf_module)`,
    which gives `{variable: array}`.

    Attributes:
        embedding: from int32 `(tokens,)` and a position to `(tokens, hidden_size / tp2)`; its
            `hf_module` is the checkpoint's `transformer`.
        block: from `(tokens, hidden_size / tp2)`, the key cache and the value cache
            `(batch_size, heads / tp1, sequence_length, head_dim)`, a position and a row to
            `(tokens, hidden_size / tp2)`; its `hf_module` is one of `transformer.h`.
        head: from `(tokens, hidden_size / tp2)` to float32 logits, `(tokens, vocabulary / tp1)`;
            its `hf_module` is the whole checkpoint.
        settings: a setting of ours -> its names in config.json, of which the first counts, and what
            transformers takes where there is none.
        turned_linear: whether a checkpoint has the weights of linear layers as `(in, out)`.
        exact: settings that must be the checkpoint's.
        fixed_settings: what the builders implement, and what config.json means by saying nothing.
        table: the name of the embedding's weight, without ``transformer.``; a tied head has it too.
        tensor_shapes: gives the shape of every tensor that is read, by name without
            ``transformer.``; of linear layers as they are stored.
    """

    embedding: type[Any]
    block: type[Any]
    head: type[Any]
    settings: Mapping[str, tuple[tuple[str, ...], Any]]
    table: str
    tensor_shapes: Callable[[ModelConfig], dict[str, tuple[int, ...]]]
    turned_linear: bool = False
    exact: tuple[str, ...] = EXACT
    fixed_settings: Mapping[str, Any] = field(default_factory=dict)


def architecture_of(config: BloomConfig) -> Architecture:
    """That of the configured model."""
    return architecture(config.model.model_type)


def architecture(model_type: str) -> Architecture:
    """By the name of its folder.

    Raises:
        ConfigError: where there is no such folder.
    """
    if model_type not in MODEL_TYPES:
        raise ConfigError(f"model_type must be one of {', '.join(MODEL_TYPES)}, not {model_type!r}")
    return import_module(f"modelling.{model_type}").ARCHITECTURE
