"""The command line: a preset, any of its settings by name, and a script's own options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from simple_parsing import ArgumentParser

from config.config import BloomConfig, ConfigError, ExecutionConfig, ModelConfig
from config.presets import DEFAULT_PRESET, PRESETS_FILE, read_preset, resolve, to_yaml
from utils.escaping import escaped


def parse_arguments(
    argv: Sequence[str] | None = None,
    *,
    extra: type | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> tuple[BloomConfig, Any]:
    """The validated configuration and the `extra` dataclass (or None) of a command line.

    `argv` is `sys.argv[1:]` when None. `extra` is a dataclass whose fields are further options.
    `--memmap-dir` is `--memmap_dir`, and so for every option.

    Raises:
        ConfigError: for an unknown preset or option, or a value that is not possible.
    """
    argv = [_with_underscores(word) for word in (sys.argv[1:] if argv is None else argv)]
    chooser = _preset_parser(add_help=False)
    choice, _ = chooser.parse_known_args(argv)
    preset = read_preset(getattr(choice, "config", None), Path(choice.config_file))

    parser = _preset_parser(prog=prog, description=description)
    if extra is not None:
        parser.add_arguments(extra, "extra")
    parser.add_arguments(ModelConfig, "model", default=preset.model)
    parser.add_arguments(ExecutionConfig, "execution", default=preset.execution)
    arguments = parser.parse_args(argv)
    config = resolve(BloomConfig(arguments.model, arguments.execution))
    return config, getattr(arguments, "extra", None)


def print_config(argv: Sequence[str] | None = None) -> int:
    """Print the settings a command line resolves to; the script's exit status."""
    try:
        config, _ = parse_arguments(argv, description="Print the resolved settings as YAML.")
    except ConfigError as error:
        print(f"error: {escaped(str(error))}", file=sys.stderr)
        return 2
    print(to_yaml(config), end="")
    return 0


class _Parser(ArgumentParser):
    """Raises what argparse would print with the whole usage, so that an error is one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help lists every option)")


def _with_underscores(word: str) -> str:
    name, equals, value = word.partition("=")
    if not name.startswith("--"):
        return word
    return "--" + name[2:].replace("-", "_") + equals + value


def _preset_parser(**settings: Any) -> _Parser:
    # No abbreviations: `--layer` would otherwise work until a second option begins with it.
    parser = _Parser(allow_abbrev=False, **settings)
    parser.add_argument(
        "--config",
        metavar="PRESET",
        default=argparse.SUPPRESS,  # it depends on the file
        help=f"named preset (default: {DEFAULT_PRESET}, or the file's only one)",
    )
    parser.add_argument(
        "--config_file", metavar="FILE", default=str(PRESETS_FILE), help="YAML file of the presets"
    )
    return parser
