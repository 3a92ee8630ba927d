"""Run a PopXL program as it is, with functions that cannot be built here replaced.

python -m popxl_torch.run --substitute modelling.rotary.rotate=my_rotary.py script.py --tokens 8
python -m popxl_torch.run --substitute modelling.rotary.rotate=my_rotary.py -m pytest tests
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from popxl_torch import python38
from popxl_torch.substitutes import Substitute, SubstituteError, install, unused

STANDINS = Path(__file__).parent / "standins"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the exit status is its own, or 2 where a substitution was not made."""
    parser = _parser()
    options = parser.parse_args(arguments)
    command = options.module or options.program
    if not command:
        parser.error("name a script, or a module after -m")
    try:
        if options.standins:
            use_standins()
        if options.python38:
            python38.allow_dataclass_defaults()
        substitutes = [Substitute.parse(text) for text in options.substitute]
        install(substitutes)
        status = _run(command, as_module=options.module is not None)
    except SubstituteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BaseException:
        _tell(substitutes)
        raise
    return 2 if _tell(substitutes) and not status else status


def use_standins() -> None:
    """Offer small stand-ins for `popart` and `cppimport` where these are not installed."""
    sys.path.append(str(STANDINS))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m popxl_torch.run",
        description="Run a PopXL program as it is, with functions that cannot be built here replaced.",
    )
    parser.add_argument(
        "--substitute",
        metavar="NAME=FILE[:FUNCTION]",
        action="append",
        default=[],
        help="package.module.function=file.py: the function of that name in the file, or FUNCTION, "
        "is used instead; what else its module imports of compiled code need not be there",
    )
    parser.add_argument(
        "--standins",
        action="store_true",
        help="offer small stand-ins for popart and cppimport, which are the Poplar SDK's, where the "
        "program imports them but does not need them",
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
            sys.path[0] = ""
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
