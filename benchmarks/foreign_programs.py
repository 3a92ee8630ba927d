"""Run public PopXL programs and their tests on this runtime, and say what passes.

    python benchmarks/foreign_programs.py FOLDER_OF_CLONES
    python benchmarks/foreign_programs.py FOLDER_OF_CLONES --group LLaMA --json llama.json

    python benchmarks/foreign_programs.py FOLDER_OF_CLONES --speed

FOLDER_OF_CLONES holds clones of Graphcore's public repositories: examples, examples-utils, popart
and popxl-addons. Nothing is written there. The first call makes a virtual environment with the
packages of these programs' time. Each test has a time limit; the table says why one does not pass.
With --speed no tests are run: the speed of some programs is measured, as a share of the machine's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from foreign.environment import SITE, MissingPython, make_environment, variables
from foreign.groups import GROUPS, Group
from foreign.reasons import OURS, reason_of
from foreign.running import Result, run_pytest
from foreign.speed import show, speed

ENVIRONMENT = Path.home() / ".cache" / "popxl" / "foreign" / "venv"


def main() -> int:
    options = _parser().parse_args()
    clones = options.clones.resolve()
    groups = [g for g in GROUPS if options.group is None or _chosen(g, options.group)]
    missing = sorted({g.folder for g in groups if not (clones / g.folder).is_dir()})
    if missing or not groups:
        what = f"{clones} lacks {', '.join(missing)}" if missing else "no group has such a name"
        print(f"error: {what}", file=sys.stderr)
        return 2
    try:
        python = make_environment(options.environment)
    except MissingPython as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.speed:
        for row in speed(clones, python):
            print(show(row), flush=True)
        return 0

    def run(group: Group) -> list[Result]:
        found = run_group(group, clones, python, options.limit, options.only)
        print(_row(group.name, found), file=sys.stderr, flush=True)
        return found

    with ThreadPoolExecutor(options.jobs) as pool:
        results = dict(zip([group.name for group in groups], pool.map(run, groups), strict=True))
    print(table(results))
    if options.json:
        listing = {name: [asdict(result) for result in found] for name, found in results.items()}
        options.json.write_text(json.dumps(listing, indent=1))
    return 0


def run_group(
    group: Group, clones: Path, python: Path, limit: int, only: str | None = None
) -> list[Result]:
    """The results of a group's tests, each with its reason."""
    with tempfile.TemporaryDirectory(prefix="foreign-") as scratch:
        for folder in (group.folder, *group.copied):
            ignored = shutil.ignore_patterns(".git", "__pycache__")
            shutil.copytree(clones / folder, Path(scratch) / folder, ignore=ignored)
        start = Path(scratch) / group.folder / group.start
        environment = variables(python, clones, [start / path for path in group.paths])
        results = run_pytest(_command(python, group, start, only), start, environment, limit)
    for result in results:
        if result.outcome != "passed":
            result.reason = reason_of(result)
    return results


def _command(python: Path, group: Group, start: Path, only: str | None) -> list[str]:
    """pytest with our plugins, under `popxl_torch.run`."""
    command = [str(python), "-m", "popxl_torch.run", "--standins", "--python38"]
    for text in group.substitutes:
        command += ["--substitute", text]
    command += ["-m", "pytest", "-q", "--tb=short", "--import-mode=importlib"]
    command += ["-p", "foreign_report", "-p", "torchvision_here", "-p", "no:cacheprovider"]
    command += ["-c", str(SITE / "pytest.ini"), f"--rootdir={start}"]
    command += ["--continue-on-collection-errors", *(["-k", only] if only else [])]
    return [*command, *group.tests]


def table(results: dict[str, list[Result]]) -> str:
    """Markdown: a row for each group, then what is this runtime's fault, by name."""
    lines = ["| group | passed | failed | skipped | why not |", "|---|---|---|---|---|"]
    lines += [_row(name, found) for name, found in results.items()]
    ours = [
        f"- `{name}` {result.test}: {result.last_line[:300]}"
        for name, found in results.items()
        for result in found
        if result.reason == OURS
    ]
    return "\n".join([*lines, "", f"Ours: {len(ours)}", "", *ours])


def _row(name: str, found: list[Result]) -> str:
    counts = Counter(result.outcome for result in found)
    reasons = Counter(result.reason for result in found if result.outcome == "failed")
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    skipped = counts["skipped"] + counts["xfailed"]
    return f"| {name} | {counts['passed']} | {counts['failed']} | {skipped} | {why} |"


def _chosen(group: Group, text: str) -> bool:
    return text.lower() in group.name.lower()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Run public PopXL programs and their tests on this runtime.",
        epilog="Groups: " + ", ".join(group.name for group in GROUPS),
    )
    parser.add_argument("clones", metavar="FOLDER_OF_CLONES", type=Path)
    parser.add_argument("--group", metavar="NAME", help="only groups whose name contains this")
    parser.add_argument("--only", metavar="WORD", help="only tests that pytest's -k takes")
    parser.add_argument("--limit", type=int, default=120, metavar="SECONDS", help="for each test")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="groups at the same time")
    parser.add_argument("--speed", action="store_true", help="measure speed instead of testing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all results, with tracebacks")
    parser.add_argument(
        "--environment", type=Path, default=ENVIRONMENT, metavar="FOLDER", help="made once"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
