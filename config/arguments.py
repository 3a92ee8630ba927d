"""The command line: a preset, any of its settings by name, and a script's own options."""

from __future__ import annotations

import sys
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from config.config import BloomConfig, ConfigError, ExecutionConfig, ModelConfig
from config.options import Parser, read
from config.presets import DEFAULT_PRESET, PRESETS_FILE, read_preset, resolve, to_yaml
from utils.escaping import escaped


def parse_arguments(
    argv: Sequence[str] | None = None,
    *,
    extra: type | None = None,
    title: str = "what to do",
    prog: str | None = None,
    description: str | None = None,
    model_of: Callable[[str, str | None], ModelConfig] | None = None,
    extra_of: Callable[[BloomConfig, set[str]], dict[str, Any]] | None = None,
) -> tuple[BloomConfig, Any]:
    """The validated configuration and the `extra` dataclass (or None) of a command line.

    `argv` is `sys.argv[1:]` when None. `extra` is a dataclass whose fields are further options,
    shown first in the help, under `title`. `--memmap-dir` is `--memmap_dir`, and so for every
    option. `model_of` gives the settings of a checkpoint, which are taken where `--hf_model` is
    given and no preset is. `extra_of` gives defaults of `extra` from the configuration, and the
    names of what was given.

    Raises:
        ConfigError: for an unknown preset or option, or a value that is not possible.
    """
    argv = sys.argv[1:] if argv is None else argv
    about: dict[str, Any] = {"prog": prog, "description": description}
    found = _parser(extra, title, **about).parse(argv)
    preset = _preset(found, model_of)
    if hasattr(found, "help"):  # the defaults that it shows are the preset's
        _parser(extra, title, preset, **about).print_help()
        sys.exit(0)
    config = BloomConfig(
        read(ModelConfig, found, preset.model), read(ExecutionConfig, found, preset.execution)
    )
    config = resolve(config)
    if extra is None:
        return config, None
    given = set(vars(found))
    defaults = extra(**extra_of(config, given)) if extra_of else None
    return config, read(extra, found, defaults)


def _preset(
    found: Namespace, model_of: Callable[[str, str | None], ModelConfig] | None
) -> BloomConfig:
    """The settings that those of a command line replace."""
    named = hasattr(found, "config") or hasattr(found, "config_file")
    if model_of is not None and not named and hasattr(found, "hf_model"):
        return BloomConfig(model_of(found.hf_model, getattr(found, "memmap_dir", None)))
    file = Path(getattr(found, "config_file", PRESETS_FILE))
    return read_preset(getattr(found, "config", None), file)


def _parser(
    extra: type | None, title: str, preset: BloomConfig | None = None, **settings: Any
) -> Parser:
    parser = Parser(_refuse, **settings)
    if extra is not None:
        parser.add_dataclass(extra, title)
    chosen = parser.add_argument_group("which model, and how it is run")
    parser.add_one(
        chosen,
        "config",
        metavar="PRESET",
        help=f"named settings of model and execution (default: {DEFAULT_PRESET}, or the only one "
        "of a file)",
    )
    parser.add_one(
        chosen,
        "config_file",
        metavar="FILE",
        help="YAML file of presets (default: config/inference.yml of the repository)",
    )
    chosen.add_argument(
        "-h", "--help", action="store_true", default=SUPPRESS, help="show this help and leave"
    )
    model, execution = (preset.model, preset.execution) if preset else (None, None)
    parser.add_dataclass(ModelConfig, "model, in place of the preset's values", model, flags=False)
    parser.add_dataclass(ExecutionConfig, "execution", execution, flags=False)
    return parser


def _refuse(message: str) -> NoReturn:
    raise ConfigError(message)


def print_config(argv: Sequence[str] | None = None) -> int:
    """Print the settings a command line resolves to; the script's exit status."""
    try:
        config, _ = parse_arguments(argv, description="Print the resolved settings as YAML.")
    except ConfigError as error:
        print(f"error: {escaped(str(error))}", file=sys.stderr)
        return 2
    print(to_yaml(config), end="")
    return 0
