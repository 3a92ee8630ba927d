"""The benchmark's command line: settings of which several values may be given, and their bounds."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from config import BloomConfig, ConfigError
from config.options import field
from utils.checkpoints.arguments import parse_model_arguments
from utils.generation.loading import on_cpu
from utils.setup import UserError

DESCRIPTION = (
    "Measure throughput beside the machine's limits, or plan a run (--dry_run). Inputs are random, "
    "and so are weights unless there is a --memmap_dir. Several values may be given for "
    "--prompt_tokens, --new_tokens and --batch_size: every combination is measured."
)
PEERS = ("hf",)

PLAN = "with --dry_run"
OF_A_PLAN = ("devices", "context", "memory_gb", "disk_gb_per_s")
"""Numbers that a dry run takes; 0 where they are not given."""


@dataclass
class BenchmarkArguments:
    """What to measure."""

    dry_run: bool = field(
        default=False,
        help="build the program without weights and print the memory and traffic it needs",
    )
    machine: str | None = field(
        default=None,
        metavar="NAME",
        help="forecast the seconds a token takes on a machine of config/machines.yml, and its best "
        "sharding; 'this' measures the machine at hand",
        group=PLAN,
    )
    machines: str | None = field(
        default=None,
        metavar="FILE",
        help="read --machine from a YAML file of your own",
        group=PLAN,
    )
    devices: int = field(default=0, help="devices of --machine to use; all if left out", group=PLAN)
    context: int = field(
        default=0,
        help="tokens in the KV cache of every request; sequence_length if left out",
        group=PLAN,
    )
    memory_gb: float = field(
        default=0,
        help="plan for so much memory, of a device with --machine; what there is if left out",
        group=PLAN,
    )
    disk_gb_per_s: float = field(
        default=0,
        help="plan for weights read from disk at this rate; measured if left out",
        group=PLAN,
    )
    prompt_tokens: list[int] = field(
        default_factory=list,
        help="prompt lengths to measure, each 1 or more; 128 or half the context if left out",
    )
    new_tokens: list[int] = field(
        default_factory=list,
        help="numbers of tokens to generate, each 2 or more; 64 or what the context holds if left "
        "out",
    )
    repeats: int = field(default=5, help="measure so many rounds, after one to warm up")
    seed: int = field(default=0, help="seed of the random weights and inputs")
    json: bool = field(default=False, help="print one JSON object in place of the table")
    plot: str | None = field(
        default=None, metavar="FILE.png", help="draw throughput beside the machine's limits"
    )
    compare: str | None = field(
        default=None,
        metavar="|".join(PEERS),
        help="measure Hugging Face transformers on the same weights too",
    )


class Combination(NamedTuple):
    """One thing to measure."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int


def parse(argv: Sequence[str] | None = None) -> tuple[list[BloomConfig], BenchmarkArguments]:
    """The configuration for each batch size, and the arguments with their defaults filled in.

    Raises:
        ConfigError, UserError: for values that are not possible.
    """
    batch_sizes, rest = _batch_sizes(list(sys.argv[1:] if argv is None else argv))
    first = [f"--batch_size={batch_sizes[0]}"] if batch_sizes else []
    config, arguments = parse_model_arguments(
        [*rest, *first],
        extra=BenchmarkArguments,
        title="what to measure",
        prog="inference.py",
        description=DESCRIPTION,
    )
    _fill_in(config, arguments)
    _check(config, arguments, batch_sizes)
    rows_of_each = batch_sizes or [config.execution.batch_size]
    return [config.changed(batch_size=rows).validate() for rows in rows_of_each], arguments


def combinations(config: BloomConfig, arguments: BenchmarkArguments) -> list[Combination]:
    """Those of one configuration, in the order given."""
    rows = config.execution.batch_size
    pairs = itertools.product(arguments.prompt_tokens, arguments.new_tokens)
    return [Combination(rows, prompt, new) for prompt, new in pairs]


def _batch_sizes(argv: list[str]) -> tuple[list[int], list[str]]:
    """What stands after --batch_size, of which the settings take one, and the words without it."""
    parser = _ListParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--batch_size", "--batch-size", nargs="+", type=int, default=[])
    found, rest = parser.parse_known_args(argv)
    return found.batch_size, rest


class _ListParser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ConfigError(f"{message} (--help lists every option)")


def _fill_in(config: BloomConfig, arguments: BenchmarkArguments) -> None:
    length = config.model.sequence_length
    if not arguments.prompt_tokens:
        arguments.prompt_tokens = [max(min(128, length // 2), 1)]
    if not arguments.new_tokens:
        arguments.new_tokens = [max(min(64, length - max(arguments.prompt_tokens)), 2)]


def _check(config: BloomConfig, arguments: BenchmarkArguments, batch_sizes: list[int]) -> None:
    bounds = {"prompt_tokens": 1, "new_tokens": 2, "repeats": 1, "seed": 0}
    for name, least in (bounds | dict.fromkeys(OF_A_PLAN, 0)).items():
        given = getattr(arguments, name)
        for value in given if isinstance(given, list) else [given]:
            if value < least:
                raise UserError(f"{name} must be {least} or more, not {value}")
    if arguments.dry_run:
        _check_dry_run(config, arguments, batch_sizes)
    else:
        _check_no_plan(arguments)
        _check_context(config, arguments)
        _check_plot(arguments.plot)
        _check_peer(config, arguments.compare)


def _check_dry_run(
    config: BloomConfig, arguments: BenchmarkArguments, batch_sizes: list[int]
) -> None:
    for name in ("plot", "compare"):
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name} measures, --dry_run does not: give one of them")
    if len(batch_sizes) > 1:
        raise UserError("--dry_run plans for one --batch_size: give one value")
    if arguments.machine is None:
        for name in ("machines", "devices", "context"):
            if getattr(arguments, name):
                raise UserError(f"--{name} is of a machine: name it with --machine")
    length = config.model.sequence_length
    if arguments.context > length:
        raise UserError(
            f"context must be at most sequence_length = {length}, not {arguments.context}"
        )


def _check_no_plan(arguments: BenchmarkArguments) -> None:
    for name in ("machine", "machines", "devices", "context"):
        if getattr(arguments, name):
            raise UserError(f"--{name} plans, the benchmark does not: add --dry_run")


def _check_context(config: BloomConfig, arguments: BenchmarkArguments) -> None:
    total = max(arguments.prompt_tokens) + max(arguments.new_tokens)
    if total > config.model.sequence_length:
        raise UserError(
            f"prompt_tokens + new_tokens must be at most sequence_length = "
            f"{config.model.sequence_length}, not {total}"
        )


def _check_plot(file: str | None) -> None:
    if file is None:
        return
    path = Path(file)
    if path.suffix.lower() != ".png":
        raise UserError(f"plot must be a file that ends in .png, not {file!r}")
    if not path.parent.is_dir():
        raise UserError(f"plot: there is no folder {str(path.parent)!r}; make it first")


def _check_peer(config: BloomConfig, peer: str | None) -> None:
    if peer is None:
        return
    if peer not in PEERS:
        raise UserError(f"compare must be one of {', '.join(PEERS)}, not {peer!r}")
    if config.model.model_type != "bloom":
        raise UserError(f"--compare knows model_type bloom alone, not {config.model.model_type}")
    if config.execution.memmap_dir is not None:
        raise UserError("--compare makes its own weights: leave out --memmap_dir")
    if not on_cpu(config):
        raise UserError(f"--compare runs on device cpu, not {config.execution.device}")
