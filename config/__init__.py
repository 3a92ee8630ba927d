"""The settings: dataclasses, their named presets, and the command line made of them."""

from config.arguments import parse_arguments
from config.config import (
    MODEL_TYPES,
    REPOSITORY,
    BloomConfig,
    ConfigError,
    ExecutionConfig,
    ModelConfig,
)
from config.presets import load_config, to_yaml

__all__ = [
    "BloomConfig",
    "ConfigError",
    "ExecutionConfig",
    "MODEL_TYPES",
    "ModelConfig",
    "REPOSITORY",
    "load_config",
    "parse_arguments",
    "to_yaml",
]
