"""Damaged and hostile files, drawn at random, given to everything that reads files.

    python tests/fuzz_files.py --cases 2000 --seed 1 --seconds 1200

A case is a folder that is whole but for a few changes: settings, a tokenizer, the index of shards,
safetensors, `.bin`, a manifest, maps, presets, an entry of the cache. It must be used or refused by
an error of one line. Anything else is printed: a traceback, a hang, a crash, output, code that ran.
The same seed gives the same cases; each is run again by `--only NUMBER`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / part) for part in ("", "runtime", "tests", "runtime/tests")]

from damage.processes import run  # noqa: E402 - found just above


def main() -> int:
    """Returns 1 where a case was neither used nor refused."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1200, help="no case is begun after that")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", type=int, help="the number of one case")
    arguments = parser.parse_args()
    cases, first = (arguments.cases, 0) if arguments.only is None else (1, arguments.only)
    report = run(cases, arguments.seed, arguments.seconds, arguments.processes, first)
    for finding in report.findings:
        print(json.dumps(finding, indent=1))
    print(f"{sum(report.outcomes.values())} cases: {dict(report.outcomes)}")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
