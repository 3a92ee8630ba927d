"""The settings: dataclasses, their named presets, and the command line made of them."""

from config.arguments import parse_arguments
from config.config import BloomConfig, ConfigError, ExecutionConfig, ModelConfig
from config.presets import load_config, to_yaml

__all__ = [
    "BloomConfig",
    "ConfigError",
    "ExecutionConfig",
    "ModelConfig",
    "load_config",
    "parse_arguments",
    "to_yaml",
]
