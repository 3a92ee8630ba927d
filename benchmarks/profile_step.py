"""Where the time of one token pass goes: op by op in torch, and with the native kernels.

    python benchmarks/profile_step.py
    python benchmarks/profile_step.py --config bloom_560M --precision bfloat16 --context 1000

Random weights. Both programs run in turn; of each the step with the least time is shown, by kind of
work, with the share of the step. Times of the native kernels include the call of each from Python,
which a recorded step has not: the last line is that of recorded steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime")]

import torch  # noqa: E402 - its profiler is what shows the ops
from popxl_torch.backends.cpu import library  # noqa: E402 - found just above
from popxl_torch.backends.cpu.back_end import Cpu  # noqa: E402
from popxl_torch.backends.cpu.structs import Instruction  # noqa: E402
from popxl_torch.replay import decisions  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from config import BloomConfig, parse_arguments  # noqa: E402
from modelling.program import inference  # noqa: E402
from utils.checkpoints.random_weights import fill_randomly  # noqa: E402
from utils.generation.passes import Passes  # noqa: E402
from utils.setup import UserError, run_script, setup_logging  # noqa: E402

SHOWN = 6
WARM_UP = 4


def main() -> None:
    arguments, words = _arguments()
    setup_logging("warning")
    config = parse_arguments(words)[0]
    if arguments.context + WARM_UP + 3 * arguments.steps > config.model.sequence_length:
        raise UserError(f"context must leave room in {config.model.sequence_length} tokens")
    if library() is None:
        raise UserError("there are no native kernels to compare with")
    Cpu.run = _timed(Cpu.run)
    for name, options, measure in (
        ("op by op in torch", {"composite_kernels": False}, _ops),
        ("native kernels", {}, _kernels),
    ):
        with _passes(config, arguments.context, options) as step:
            seconds, parts = min(
                (measure(step) for _ in range(arguments.steps)), key=lambda x: x[0]
            )
            _show(name, seconds, parts)
            best = min(_seconds(step) for _ in range(arguments.steps))
            print(f"{'without looking on':<34} {best * 1e3:8.2f} ms\n")


@contextmanager
def _passes(config: BloomConfig, context: int, options: dict):
    """A function that makes one token pass after a prompt."""
    session = inference(config, **options)
    fill_randomly(session, np.random.default_rng(0))
    with session:
        passes = Passes(config, session)
        for row in range(passes.batch_size):
            passes.prefill(row, [1] * context)
        positions = np.full(passes.batch_size, context, np.int32)

        def step() -> None:
            passes.decode(np.ones(passes.batch_size, np.int32), positions)
            positions[:] += 1

        for _ in range(WARM_UP):
            step()
        yield step


def _ops(step) -> tuple[float, Counter]:
    """Seconds of a step, and of each torch op in it."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    parts: Counter = Counter()
    for event in profiled.key_averages():
        parts[event.key] += event.self_cpu_time_total / 1e6
    return sum(parts.values()), parts


_times: Counter = Counter()
"""Seconds of each kind of native kernel so far."""


def _timed(run):
    """`Cpu.run`, timed; to be put in its place before sessions are made, which keep it."""

    def timed(self, instruction: Instruction, result: torch.Tensor, **fields: Any) -> None:
        begin = time.perf_counter()
        run(self, instruction, result, **fields)
        _times[instruction.kind.lower()] += time.perf_counter() - begin

    return timed


def _kernels(step) -> tuple[float, Counter]:
    """Seconds of a step, and of each kind of native kernel in it; not from a recording."""
    token = decisions.observer.set(lambda tensor, values: None)  # who looks on stops replays
    _times.clear()
    try:
        seconds = _seconds(step)
    finally:
        decisions.observer.reset(token)
    parts = Counter(_times)
    parts["Python and torch"] = seconds - sum(parts.values())
    return seconds, parts


def _seconds(step) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def _show(name: str, seconds: float, parts: Counter) -> None:
    print(f"{name:<34} {seconds * 1e3:8.2f} ms")
    common = parts.most_common(SHOWN)
    rest = seconds - sum(value for _, value in common)
    for part, value in [*common, ("others", rest)] if len(parts) > SHOWN else common:
        print(f"  {part:<32} {value * 1e3:8.2f} ms {value / seconds:6.1%}")


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="bloom_560M", help="preset whose shape is used")
    parser.add_argument("--context", type=int, default=100, help="tokens in front of the step")
    parser.add_argument("--steps", type=int, default=10, help="of which the quickest is shown")
    arguments, settings = parser.parse_known_args()
    for name in ("context", "steps"):
        if getattr(arguments, name) < 1:
            raise UserError(f"{name} must be 1 or more, not {getattr(arguments, name)}")
    return arguments, ["--config", arguments.config, *settings]


if __name__ == "__main__":
    run_script(main)
