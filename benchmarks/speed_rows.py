"""How the rows of the table of speed are measured."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from popxl_torch.analysis.cost import memory_of
from random_checkpoint import make_checkpoint

from config import BloomConfig, parse_arguments
from utils.benchmark.arguments import parse
from utils.benchmark.command import Measured, measure
from utils.benchmark.report import Result
from utils.checkpoints.random_weights import fill_randomly
from utils.generation.loading import build
from utils.generation.passes import Passes
from utils.our_runtime import available_memory

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 2
CONTEXTS = 1000, 100
ROWS_AT_ONCE = 8
PROMPT = 512
HALF = "bfloat16", "float16"


class NotMeasuredError(Exception):
    """Why a row has no value."""


@dataclass(frozen=True)
class Value:
    """What a row comes to, and what it was measured against, in words."""

    value: float
    against: str


@dataclass(frozen=True)
class Bench:
    """What rows are measured with.

    Attributes:
        words: the settings, as a command line.
        repeats: rounds; steps of decoding are eight times as many.
    """

    words: list[str]
    repeats: int
    work_dir: Path

    def config(self, *words: str) -> BloomConfig:
        return parse_arguments([*self.words, *words])[0]

    def result(self, *words: str) -> Result:
        """Of `inference.py` with these words."""
        configs, arguments = parse([*self.words, f"--repeats={self.repeats}", *words])
        measured = Measured()
        measure(configs[0], arguments, measured)
        return measured.results[0]


def decode(bench: Bench, *words: str) -> Value:
    """The share of the read bandwidth that decoding reaches, after a prompt of 128."""
    given = bench.config().model.precision
    precision = given if given in HALF else HALF[0]
    words = ("--precision", precision, "--prompt_tokens", "128", "--new_tokens", "32", *words)
    result = bench.result(*words)
    rate, limit = result.decode_tokens_per_second.median, result.read_bandwidth.median
    return Value(
        result.decode_share,
        f"{rate:.1f} tokens/s in {precision}; {limit / 1e9:.1f} GB/s over "
        f"{result.step_bytes / 1e9:.2f} GB a step",
    )


def prompt(bench: Bench) -> Value:
    """The share of the matmul rate that a prompt reaches."""
    words = ["--precision", "bfloat16", "--prompt_tokens", str(PROMPT), "--new_tokens", "2"]
    result = bench.result(*words)
    rate, limit = result.prompt_tokens_per_second.median, result.matmul_rate.median
    return Value(
        result.prompt_share,
        f"{rate:.0f} tokens/s; {limit / 1e9:.0f} GFLOP/s over "
        f"{result.prompt_operations / 1e9:.0f} G operations",
    )


def context(bench: Bench) -> Value:
    """Decoding far into the context against decoding near its beginning, in one session."""
    config = bench.config("--batch_size", "1")
    if config.model.sequence_length < max(CONTEXTS) + 8 * bench.repeats + WARM_UP:
        raise NotMeasuredError(f"sequence_length is {config.model.sequence_length}")
    session = build(config)
    fill_randomly(session, np.random.default_rng(0))
    with session:
        passes = Passes(config, session)
        passes.prefill(0, [1] * max(CONTEXTS))  # memory that was never written reads faster
        return _ratio(bench, *(Decoder(passes, length) for length in CONTEXTS))


def batch(bench: Bench, *words: str) -> Value:
    """Tokens a second of several rows against those of one."""
    several, one = (bench.config("--batch_size", str(n), *words) for n in (ROWS_AT_ONCE, 1))
    sessions = build(several), build(one)
    fill_randomly(sessions[0], np.random.default_rng(0), sessions[1])
    with sessions[0], sessions[1]:
        return _ratio(bench, *map(_decoder, (several, one), sessions))


def sharded(bench: Bench) -> Value:
    """4 x 4 shards in this process against one."""
    four = bench.config("--tensor_parallel_1", "4", "--tensor_parallel_2", "4")
    one = bench.config("--tensor_parallel_1", "1", "--tensor_parallel_2", "1")
    sessions = build(four), build(one)
    needed = 2.2 * memory_of(sessions[1].ir)[0]
    if needed > available_memory():
        raise NotMeasuredError(f"both need {needed / 1e9:.0f} GB, more than there is")
    for session in sessions:
        fill_randomly(session, np.random.default_rng(0))
    with sessions[0], sessions[1]:
        return _ratio(bench, *map(_decoder, (four, one), sessions))


def transformers(bench: Bench, which: str) -> Value:
    """How many times faster than transformers in bfloat16, pass by pass."""
    words = ["--precision", "bfloat16", "--compare", "hf", "--batch_size", "1"]
    result = bench.result(
        *words, "--prompt_tokens", str(PROMPT if which == "prompt" else 128), "--new_tokens", "16"
    )
    comparison = result.comparison
    assert comparison is not None
    rate = getattr(comparison, f"{which}_tokens_per_second")
    if which == "prompt":
        most = result.matmul_rate.median * PROMPT / result.prompt_operations
    else:
        most = result.read_bandwidth.median / result.step_bytes
    return Value(
        getattr(comparison, f"{which}_ratio"),
        f"{rate:.1f} tokens/s by transformers; {most / rate:.2f} x at the machine's limit",
    )


def launch(bench: Bench) -> Value:
    """Seconds from the start of `run_inference.py` to its first token, from maps, not the first."""
    config, maps = bench.config(), bench.work_dir / "maps"
    checkpoint = bench.work_dir / "checkpoint"
    make_checkpoint(config.model, checkpoint)
    words = [*bench.words, "--memmap_dir", str(maps)]
    _run("generate_memmap.py", *words, "--shard-root", str(checkpoint), out=subprocess.DEVNULL)
    environment = os.environ | {"POPXL_CACHE_DIR": str(bench.work_dir / "cache")}
    ask = ["run_inference.py", *words, "--prompt", "A dog is", "--num_tokens", "1", "--json"]
    seconds = [_seconds(lambda: _run(*ask, environment=environment)) for _ in range(4)]
    return Value(statistics.median(seconds[1:]), f"the first launch took {seconds[0]:.1f} s")


class Decoder:
    """Steps of decoding, all rows at the same position."""

    def __init__(self, passes: Passes, position: int):
        self.passes, self.position = passes, position

    def step(self) -> float:
        """Tokens a second of one step."""
        rows = self.passes.batch_size
        positions = np.full(rows, self.position, np.int32)
        seconds = _seconds(lambda: self.passes.decode(np.ones(rows, np.int32), positions))
        self.position += 1
        return rows / seconds


def _decoder(config: BloomConfig, session) -> Decoder:
    passes = Passes(config, session)
    for row in range(passes.batch_size):
        passes.prefill(row, [1] * 100)
    return Decoder(passes, 100)


def _ratio(bench: Bench, one: Decoder, other: Decoder) -> Value:
    """Of the tokens a second of two decoders, step by step in turn."""
    pairs = [(one.step(), other.step()) for _ in range(WARM_UP + 8 * bench.repeats)][WARM_UP:]
    rates = [statistics.median(rate) for rate in zip(*pairs, strict=True)]
    ratio = statistics.median(a / b for a, b in pairs)
    return Value(ratio, f"{rates[0]:.1f} and {rates[1]:.1f} tokens/s")


def _run(
    script: str, *words: str, out: int = subprocess.PIPE, environment: dict | None = None
) -> None:
    environment = dict(environment or os.environ)
    environment["PYTHONPATH"] = str(ROOT / "runtime")
    command = [sys.executable, str(ROOT / script), *words]
    done = subprocess.run(
        command, stdout=out, stderr=subprocess.PIPE, env=environment, text=True, check=False
    )
    if done.returncode:
        raise NotMeasuredError(f"{script}: {done.stderr.strip().splitlines()[-1]}")


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
