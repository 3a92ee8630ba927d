"""How long a newcomer's long prompt holds up those whose text is being made.

    python benchmarks/long_prompt.py --config bloom_560M --precision bfloat16
    python benchmarks/long_prompt.py --config bloom_560M --precision bfloat16 --prompt_chunks 512

Every row of the engine but one decodes; then a long prompt comes, `--rounds` times. Measured is the
time between two tokens of a request that decodes, while no prompt is read and while one is. Weights
are random. What the page sets where it is not given, --batch_size and --prompt_chunks, holds here.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from random_model import random_model  # noqa: E402 - found just above

from config import parse_arguments  # noqa: E402
from config.options import field  # noqa: E402
from run_inference_gradio import for_many  # noqa: E402
from utils.generation import LanguageModel  # noqa: E402
from utils.generation.engine import Engine  # noqa: E402
from utils.generation.request import Request  # noqa: E402
from utils.generation.sampling import SamplingConfig  # noqa: E402
from utils.setup import UserError, run_script, setup_logging  # noqa: E402

DESCRIPTION = "Measure how long a long prompt holds up requests that decode."
PAUSE = 20
"""Tokens of every request before each long prompt."""


@dataclass
class LongPromptArguments:
    """What to measure."""

    prompt_tokens: int = field(default=500, help="length of the long prompt")
    rounds: int = field(default=5, help="send so many long prompts, one after another")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark's command line.

    Raises:
        UserError: one row only, or a prompt that does not fit the context.
    """
    config, arguments = parse_arguments(
        argv, extra=LongPromptArguments, prog="long_prompt.py", description=DESCRIPTION
    )
    config = for_many(config, sys.argv[1:] if argv is None else argv)
    setup_logging("warning")
    if config.execution.batch_size < 2:
        raise UserError("batch_size must be 2 or more: one row reads the prompt, others decode")
    if not 0 < arguments.prompt_tokens < config.model.sequence_length:
        raise UserError(
            f"prompt_tokens must be from 1 to {config.model.sequence_length - 1}, one less than "
            f"the context has, not {arguments.prompt_tokens}"
        )
    loaded = random_model(config, seed=0)
    loaded.passes.warm_up(times=2)
    for line in describe(measure(loaded, arguments)):
        print(line)


@dataclass(frozen=True)
class Measured:
    """Seconds between two tokens, while no prompt is read and while one is; to a first token."""

    apart: list[float]
    beside: list[float]
    firsts: list[float]


def measure(loaded: LanguageModel, arguments: LongPromptArguments) -> Measured:
    """All rows but one decode, and `rounds` prompts come."""
    times: list[float] = []  # of one request's tokens; those of the others are the same
    spans: list[tuple[float, float]] = []
    with Engine(loaded.passes) as engine:
        for row in range(1, loaded.passes.batch_size):
            notify = (lambda: times.append(time.monotonic())) if row == 1 else (lambda: None)
            engine.submit(_request(loaded, 8, loaded.passes.sequence_length), notify)
        for _ in range(arguments.rounds):
            _wait_for(times, len(times) + PAUSE)
            begin = time.monotonic()
            list(engine.run(_request(loaded, arguments.prompt_tokens, 1)))
            spans.append((begin, time.monotonic()))
        _wait_for(times, len(times) + PAUSE)
    measured = Measured([], [], [end - begin for begin, end in spans])
    for before, after in itertools.pairwise(times[PAUSE // 2 :]):
        within = any(after > begin and before < end for begin, end in spans)
        (measured.beside if within else measured.apart).append(after - before)
    return measured


def _request(loaded: LanguageModel, prompt_tokens: int, num_tokens: int) -> Request:
    """Greedy, of tokens made up."""
    ids = np.random.default_rng(prompt_tokens).integers(1000, 2000, prompt_tokens).tolist()
    return Request(
        ids,
        loaded.tokenizer,
        SamplingConfig(),
        num_tokens,
        sequence_length=loaded.passes.sequence_length,
    )


def _wait_for(times: list[float], count: int) -> None:
    while len(times) < count:
        time.sleep(0.01)


def describe(measured: Measured) -> list[str]:
    """Lines for a person."""

    def gaps(seconds: list[float]) -> str:
        median, most = np.median(seconds) * 1000, max(seconds) * 1000
        return f"{median:6.0f} ms median, {most:6.0f} ms at most, of {len(seconds)}"

    return [
        f"between two tokens, no prompt read  {gaps(measured.apart)}",
        f"between two tokens, beside a prompt {gaps(measured.beside)}",
        f"the prompt to its first token       {np.median(measured.firsts) * 1000:6.0f} ms median",
    ]


if __name__ == "__main__":
    run_script(main)
