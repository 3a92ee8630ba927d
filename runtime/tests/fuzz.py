"""Runs random programs by every back end at hand; prints those that fail, made small.

    PYTHONPATH=runtime:runtime/tests python runtime/tests/fuzz.py --seeds 50000

What is printed of a failing program is a script that shows what it gives with kernels and without.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict

from fuzzing.check import RUNS, Failure, Statistics, check, same_failure
from fuzzing.code import snippet
from fuzzing.generate import write
from fuzzing.shrink import shrunk
from processes import run_in_processes

CHUNK = 10
"""Programs that processes run before they are started anew."""


def main() -> int:
    """Returns 1 where a program failed."""
    options = _options()
    found: dict[str, list[int]] = defaultdict(list)
    seen, began = Statistics(), time.monotonic()
    for start in range(options.start, options.start + options.seeds, CHUNK):
        seeds = range(start, min(start + CHUNK, options.start + options.seeds))
        for seed, failure in _failures(seeds, options.processes, seen):
            found[failure.kind].append(seed)
            if len(found[failure.kind]) <= options.show:
                _show(seed, failure, options)
        done, seconds = seeds[-1] + 1 - options.start, time.monotonic() - began
        failed = sum(map(len, found.values()))
        print(
            f"\r{done} programs, {failed} failed, {done / seconds:.1f}/s", end="", file=sys.stderr
        )
    _summary(found, seen)
    return 1 if found else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=500, help="how many programs")
    parser.add_argument("--start", type=int, default=0, help="the first one's number")
    parser.add_argument("--processes", type=int, default=1, help="that share the replicas")
    parser.add_argument("--seconds", type=float, default=60, help="to make one program small in")
    parser.add_argument("--show", type=int, default=1, help="failing programs of a kind to print")
    return parser.parse_args()


def _failures(seeds: range, processes: int, seen: Statistics) -> list[tuple[int, Failure]]:
    if processes == 1:
        found = ((seed, check(write(seed), seen)) for seed in seeds)
        return [(seed, failure) for seed, failure in found if failure]
    try:
        return run_in_processes(processes, failures_across, seeds, processes)[0]
    except AssertionError as error:
        if len(seeds) == 1:
            return [(seeds[0], Failure(f"{processes} processes: no answer", str(error)))]
        return [found for s in seeds for found in _failures(range(s, s + 1), processes, seen)]


def failures_across(seeds: range, processes: int) -> list[tuple[int, Failure]]:
    """In each of several processes: the programs that fail when these share their replicas."""
    found = []
    for seed in seeds:
        program = write(seed)
        if program.replicas % processes == 0:
            failure = check(program, processes=processes)
            found += [(seed, failure)] if failure else []
    return found


def _show(seed: int, failure: Failure, options: argparse.Namespace) -> None:
    print(f"\n# seed {seed}: {failure.kind}\n# " + failure.detail.strip().replace("\n", "\n# "))
    program = write(seed)
    if options.processes == 1:
        program = shrunk(program, same_failure(failure), options.seconds)
    print(snippet(program, RUNS), flush=True)


def _summary(found: dict[str, list[int]], seen: Statistics) -> None:
    print(f"\n{sum(map(len, found.values()))} programs failed")
    if seen.compared:
        print(
            f"{seen.compared} results compared, {seen.loose} not for want of precision, "
            f"{seen.out_of_range} programs out of range; rounding was allowed "
            f"{statistics.median(seen.allowed):.1e} of a result's magnitude (median)"
        )
    for kind, seeds in sorted(found.items(), key=lambda item: -len(item[1])):
        print(f"{len(seeds):6} {kind}; first at {seeds[0]}, then {seeds[1:6]}")


if __name__ == "__main__":
    sys.exit(main())
