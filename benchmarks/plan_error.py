"""How far seconds a token, as planned for the machine at hand, are from those measured.

    python benchmarks/plan_error.py
    python benchmarks/plan_error.py --presets bloom_tiny bloom_7B1 --context 512

Weights are random. A round measures the machine, forecasts a token from that, and then runs some:
rates move from second to second, so only what is measured together is compared. What is printed are
medians over the rounds, the error among them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from popxl_torch import machine as popxl_machine  # noqa: E402 - found just above

from config import BloomConfig, load_config  # noqa: E402
from utils.checkpoints.random_weights import fill_randomly  # noqa: E402
from utils.generation.loading import build  # noqa: E402
from utils.generation.passes import Passes  # noqa: E402
from utils.planning.forecast import Forecast, forecast  # noqa: E402
from utils.planning.machines import Machine  # noqa: E402
from utils.planning.needs import needs_of  # noqa: E402
from utils.planning.this_machine import products, thin_program, this_machine  # noqa: E402
from utils.setup import UserError, run_script, setup_logging  # noqa: E402

PRESETS = ("bloom_tiny", "bloom_560M", "bloom_1B1", "bloom_560M_pod16")
TOKENS = 4
"""Run in a round, between two samples of the machine."""


@dataclass(frozen=True)
class Round:
    """A forecast, and the seconds of the token passes run next to it."""

    forecast: Forecast
    seconds: float

    @property
    def error(self) -> float:
        """Of the forecast, as a share of what was measured; below 0 where it was too fast."""
        return self.forecast.seconds / self.seconds - 1


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    setup_logging("warning")
    results = {}
    for preset in arguments.presets:
        config = load_config(preset)
        if arguments.context > config.model.sequence_length - TOKENS:
            raise UserError(f"context must leave room for {TOKENS} tokens in {preset}")
        results[preset] = measure(config, arguments)
        popxl_machine.release()
    if arguments.json:
        print(json.dumps({name: figures(rounds) for name, rounds in results.items()}, indent=2))
    else:
        print(table(results, arguments.context))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=PRESETS, help="of config/inference.yml")
    parser.add_argument("--context", type=int, default=64, help="tokens in the cache")
    parser.add_argument("--rounds", type=int, default=10, help="measured, 1 or more")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    for name in ("context", "rounds"):
        if getattr(arguments, name) < 1:
            raise UserError(f"{name} must be 1 or more, not {getattr(arguments, name)}")
    return arguments


def measure(config: BloomConfig, arguments: argparse.Namespace) -> list[Round]:
    """The rounds of one configuration."""
    needs = needs_of(config)
    machine = this_machine(needs)
    session = build(config)
    fill_randomly(session, np.random.default_rng(0))
    with session, thin_program(config) as seconds_a_call, products(config) as rate:

        def sampled() -> Machine:
            """The machine as it is now."""
            return dataclasses.replace(
                machine,
                memory_rate=popxl_machine.read_bandwidth(config.execution.device),
                arithmetic={config.model.precision: rate(3)},
                call=seconds_a_call(5),
            )

        passes = Passes(config, session)
        passes.prefill(0, [1] * arguments.context)
        run_tokens(passes, arguments.context)
        rounds = []
        for _ in range(arguments.rounds):
            before = sampled()
            seconds = run_tokens(passes, arguments.context)
            between = mean_of(before, sampled())
            rounds.append(Round(forecast(needs, between, arguments.context), seconds))
    return rounds


def mean_of(a: Machine, b: Machine) -> Machine:
    return dataclasses.replace(
        a,
        memory_rate=(a.memory_rate + b.memory_rate) / 2,
        arithmetic={kind: (rate + b.arithmetic[kind]) / 2 for kind, rate in a.arithmetic.items()},
        call=(a.call + b.call) / 2,
    )


def run_tokens(passes: Passes, context: int) -> float:
    """Seconds of a token pass, the median of some."""
    times = []
    for position in range(context, context + TOKENS):
        rows = np.ones(passes.batch_size, np.int32)
        begin = time.perf_counter()
        passes.decode(rows, rows * position)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def figures(rounds: list[Round]) -> dict[str, float]:
    """Medians over the rounds; seconds."""
    of_forecasts = ("reading", "arithmetic", "calls", "seconds")
    medians = {
        name: statistics.median(getattr(r.forecast, name) for r in rounds) for name in of_forecasts
    }
    return {
        **{name: medians[name] for name in of_forecasts[:-1]},
        "predicted": medians["seconds"],
        "measured": statistics.median(r.seconds for r in rounds),
        "error": statistics.median(r.error for r in rounds),
        "least_error": min(r.error for r in rounds),
        "largest_error": max(r.error for r in rounds),
    }


def table(results: dict[str, list[Round]], context: int) -> str:
    lines = [
        f"A token of one row with {context} before it, in ms:",
        f"{'':<18}{'reading':>9}{'arithm.':>9}{'calls':>9}{'planned':>9}{'measured':>10}"
        f"{'error':>8}  rounds from .. to",
    ]
    for name, rounds in results.items():
        f = figures(rounds)
        parts = (f["reading"], f["arithmetic"], f["calls"], f["predicted"])
        lines.append(
            f"{name:<18}{''.join(f'{1e3 * part:9.2f}' for part in parts)}"
            f"{1e3 * f['measured']:10.2f}{f['error']:+8.0%}"
            f"  {f['least_error']:+.0%} .. {f['largest_error']:+.0%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
