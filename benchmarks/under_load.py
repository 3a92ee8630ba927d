"""How fast decode and prefill are while other programs use the processor.

    python benchmarks/under_load.py
    python benchmarks/under_load.py --config bloom_560M --busy 1 --seconds 6

For each number of busy processes, which this script starts and ends, the model runs with one thread
and with all of them, in turn. `share` is what all threads make of what one makes, median of rounds;
with every core busy, or none, compare it with the line before.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime")]

import numpy as np  # noqa: E402 - what comes is found just above
import torch  # noqa: E402

from config import parse_arguments  # noqa: E402
from utils.checkpoints.random_weights import fill_randomly  # noqa: E402
from utils.generation.loading import build  # noqa: E402
from utils.generation.passes import Passes  # noqa: E402

LONGEST = 600
"""Seconds after which a busy process ends by itself."""
BUSY = f"import time; end = time.time() + {LONGEST}\nwhile time.time() < end: pass"
PREFILL = 128


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many other processes that compute without end meanwhile."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        time.sleep(0.5 if processes else 0)
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def rate(step: Callable[[], int], seconds: float) -> float:
    """Tokens a second of steps that give their number of tokens."""
    start, tokens = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        tokens += step()
    return tokens / (time.perf_counter() - start)


def compare(step: Callable[[], int], seconds: float, rounds: int) -> tuple[float, float, float]:
    """Tokens a second with one thread and with all, and the median of their ratios."""
    threads, pairs = torch.get_num_threads(), []
    for _ in range(rounds):
        torch.set_num_threads(1)
        one = rate(step, seconds)
        torch.set_num_threads(threads)
        pairs.append((one, rate(step, seconds)))
    one, every = (statistics.median(found) for found in zip(*pairs, strict=True))
    return one, every, statistics.median(b / a for a, b in pairs)


def measure(preset: str, options: argparse.Namespace, words: list[str]) -> None:
    config, _ = parse_arguments(["--config", preset, "--prompt_chunks", str(PREFILL), *words])
    session = build(config)
    fill_randomly(session, np.random.default_rng(0))
    with session:
        passes = Passes(config, session)
        tokens, positions = np.ones(1, np.int32), np.full(1, PREFILL, np.int32)

        def decode() -> int:
            passes.decode(tokens, positions)
            return 1

        def prefill() -> int:
            passes.prefill(0, [1] * PREFILL)
            return PREFILL

        for step in (prefill, decode):
            for _ in range(3):
                step()
        for processes in options.busy:
            with busy(processes):
                for name, step in (("decode", decode), ("prefill", prefill)):
                    one, every, share = compare(step, options.seconds, options.rounds)
                    line = f"{preset:<12} {processes:>4} {name:<8} {one:>12.1f} {every:>12.1f}"
                    print(f"{line} {share:>7.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", nargs="+", default=["bloom_tiny", "bloom_560M"], help="presets")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--busy", nargs="+", type=int, default=[0, 1, cores], help="busy processes beside it"
    )
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of one thread and all in turn")
    options, words = parser.parse_known_args()
    print(f"{'preset':<12} busy {'':<8} {'one thread':>12} {'all threads':>12}   share")
    for preset in options.config:
        measure(preset, options, words)


if __name__ == "__main__":
    main()
