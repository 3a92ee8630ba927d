"""Run a PopXL program as it is, with functions that cannot be built here replaced.

    python -m popxl_torch.run --substitute modelling.rotary.rotate=my_rotary.py script.py --tokens 8
    python -m popxl_torch.run --substitute modelling.rotary.rotate=my_rotary.py -m pytest tests

Python programs that the program starts are run likewise.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from popxl_torch.python38 import allow_dataclass_defaults
from popxl_torch.substitutes import USED, Substitute, SubstituteError, install, unused

HERE = Path(__file__).resolve().parent
STANDINS = HERE / "standins"
CHILDREN = HERE / "children"
SETTINGS = "POPXL_TORCH_RUN"
"""The environment variable from which child processes know what to replace."""

DESCRIPTION = "Run a PopXL program as it is, with functions that cannot be built here replaced."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the exit status is its own, or 2 where a substitution was not made."""
    parser = _parser()
    options = parser.parse_args(arguments)
    command = options.module or options.program
    if not command:
        parser.error("name a script, or a module after -m")
    substitutes: list[Substitute] = []
    with tempfile.NamedTemporaryFile() as used:
        try:
            substitutes = [Substitute.parse(text) for text in options.substitute]
            _pass_on(substitutes, options.standins, options.python38, used.name)
            _prepare(substitutes, options.standins, options.python38)
            status = _run(command, as_module=options.module is not None)
        except SubstituteError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except BaseException:
            _tell(substitutes)
            raise
        return 2 if _tell(substitutes) and not status else status


def inherit() -> None:
    """In a child process: what its parent was told to replace is replaced here, too."""
    settings = os.environ.get(SETTINGS)
    if settings is None:
        return
    texts, *flags = json.loads(settings)
    try:
        _prepare([Substitute.parse(text) for text in texts], *flags)
    except SubstituteError as error:
        sys.exit(f"error: {error}")


def _prepare(substitutes: Sequence[Substitute], standins: bool, python38: bool) -> None:
    if standins:  # at the end: what is installed comes first
        sys.path.append(str(STANDINS))
    if python38:
        allow_dataclass_defaults()
    install(substitutes)


def _pass_on(substitutes: Sequence[Substitute], standins: bool, python38: bool, used: str) -> None:
    """Have child processes call `inherit`, whether they get the variable or this process's path."""
    os.environ[SETTINGS] = json.dumps([list(map(str, substitutes)), standins, python38])
    os.environ[USED] = used
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(CHILDREN), *([known] if known else [])])
    sys.path.insert(1, str(CHILDREN))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m popxl_torch.run", description=DESCRIPTION)
    parser.add_argument(
        "--substitute",
        metavar="NAME=FILE[:FUNCTION]",
        action="append",
        default=[],
        help="package.module.function=file.py: the function of that name in the file, or FUNCTION, "
        "is used instead; compiled code that the module imports need not be there",
    )
    parser.add_argument(
        "--standins",
        action="store_true",
        help="offer small stand-ins for popart and cppimport, which programs import without need",
    )
    parser.add_argument(
        "--python38",
        action="store_true",
        help="take instances of dataclasses as defaults of dataclass fields, as Python 3.8 did",
    )
    parser.add_argument("-m", dest="module", metavar="MODULE", nargs=argparse.REMAINDER)
    parser.add_argument("program", metavar="SCRIPT ARGUMENT", nargs=argparse.REMAINDER)
    return parser


def _run(command: Sequence[str], as_module: bool) -> int:
    """Run a script or a module as `python` itself would; returns its exit status."""
    sys.argv = list(command)
    try:
        if as_module:
            sys.path[0] = os.getcwd()
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        elif not Path(command[0]).is_file():
            print(f"error: there is no script {command[0]}", file=sys.stderr)
            return 2
        else:
            sys.path[0] = str(Path(command[0]).resolve().parent)
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0


def _tell(substitutes: Sequence[Substitute]) -> bool:
    """Say which substitutes were not used; whether there is any."""
    lines = unused(substitutes)
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
