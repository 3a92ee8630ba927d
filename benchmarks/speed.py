"""How near the program comes to the machine's limits: one table, a row for each demand.

    python benchmarks/speed.py
    python benchmarks/speed.py --config bloom_7B1 --rows decode_16 decode_4

Each value is a share of a limit, or a ratio of two things, that were measured in turn in the same
run. `needed` is the least that is acceptable. Settings may be given by name, as for every script.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from random_checkpoint import make_checkpoint  # noqa: E402 - found just above

from config import BloomConfig, parse_arguments  # noqa: E402
from config.config import ExecutionConfig, ModelConfig, setting_names  # noqa: E402
from utils.benchmark.arguments import parse  # noqa: E402
from utils.benchmark.command import Measured, measure  # noqa: E402
from utils.benchmark.report import Result  # noqa: E402
from utils.loading import build  # noqa: E402
from utils.memory import available_memory  # noqa: E402
from utils.passes import Passes  # noqa: E402
from utils.random_weights import fill_randomly  # noqa: E402
from utils.setup import UserError, run_script, setup_logging  # noqa: E402

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
class Row:
    """One demand.

    Attributes:
        form: how values are written.
        needed, aim: of the value; with `less` it must be at most these, not at least.
    """

    what: str
    needed: float
    aim: float
    measure: Callable[[Bench], Value]
    form: str = "{:.0%}"
    less: bool = False

    def verdict(self, value: float) -> str:
        sign = -1 if self.less else 1
        if sign * value >= sign * self.aim:
            return "aim reached"
        return "enough" if sign * value >= sign * self.needed else "SHORT"


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


def main() -> None:
    """Measure the rows that are asked for and print each when it is there."""
    arguments, words = _arguments()
    setup_logging("warning")
    with _folder(arguments.work_dir) as folder:
        bench = Bench(words, arguments.repeats, folder)
        bench.config()  # settings that are not possible end here
        print(_line("", "measured", "needed", "aim", "verdict", "against"), flush=True)
        for name in arguments.rows:
            row = ROWS[name]
            demands = row.form.format(row.needed), row.form.format(row.aim)
            try:
                found = row.measure(bench)
            except NotMeasuredError as reason:
                print(_line(row.what, "-", *demands, "not available", str(reason)), flush=True)
                continue
            finally:
                gc.collect()  # a session is large, and may be in cycles
            shown, verdict = row.form.format(found.value), row.verdict(found.value)
            print(_line(row.what, shown, *demands, verdict, found.against), flush=True)


# --- rows ---


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


def decode_quantised(bench: Bench, weight_precision: str) -> Value:
    if "weight_precision" not in setting_names(ModelConfig) + setting_names(ExecutionConfig):
        raise NotMeasuredError("there is no setting weight_precision")
    return decode(bench, "--weight_precision", weight_precision)


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
        passes.prompt(0, [1] * max(CONTEXTS))  # memory that was never written reads faster
        return _ratio(bench, *(Decoder(passes, length) for length in CONTEXTS))


def batch(bench: Bench) -> Value:
    """Tokens a second of several rows against those of one."""
    several, one = (bench.config("--batch_size", str(n)) for n in (ROWS_AT_ONCE, 1))
    sessions = build(several), build(one)
    fill_randomly(sessions[0], np.random.default_rng(0), sessions[1])
    with sessions[0], sessions[1]:
        return _ratio(bench, *map(_decoder, (several, one), sessions))


def sharded(bench: Bench) -> Value:
    """4 x 4 shards in this process against one."""
    four = bench.config("--tensor_parallel_1", "4", "--tensor_parallel_2", "4")
    one = bench.config("--tensor_parallel_1", "1", "--tensor_parallel_2", "1")
    sessions = build(four), build(one)
    needed = 2.2 * sessions[1].ir.memory()[0]
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


ROWS = {
    "decode_16": Row("decode, 16-bit weights, of bandwidth", 0.85, 0.95, decode),
    "decode_8": Row(
        "decode, 8-bit weights, of bandwidth", 0.75, 0.90, lambda b: decode_quantised(b, "int8")
    ),
    "decode_4": Row(
        "decode, 4-bit weights, of bandwidth", 0.60, 0.85, lambda b: decode_quantised(b, "int4")
    ),
    "context": Row("decode, context 1000 against 100", 0.85, 0.95, context, "{:.2f} x"),
    "batch": Row("decode, batch 8 against 1, tokens/s", 5, 7, batch, "{:.2f} x"),
    "prompt": Row("prompt of 512, bfloat16, of matmul rate", 0.70, 0.85, prompt),
    "sharded": Row("decode, 4 x 4 shards against 1 x 1", 0.6, 0.85, sharded, "{:.2f} x"),
    "hf_decode": Row(
        "decode, against transformers", 3, 4, lambda b: transformers(b, "decode"), "{:.2f} x"
    ),
    "hf_prompt": Row(
        "prompt, against transformers", 1.5, 2, lambda b: transformers(b, "prompt"), "{:.2f} x"
    ),
    "launch": Row("second launch to first token", 8, 3, launch, "{:.1f} s", less=True),
}


# --- how rows are measured ---


class Decoder:
    """Steps of decoding, all rows at the same position."""

    def __init__(self, passes: Passes, position: int):
        self.passes, self.position = passes, position

    def step(self) -> float:
        """Tokens a second of one step."""
        rows = self.passes.batch_size
        positions = np.full(rows, self.position, np.int32)
        seconds = _seconds(lambda: self.passes.token(np.ones(rows, np.int32), positions))
        self.position += 1
        return rows / seconds


def _decoder(config: BloomConfig, session) -> Decoder:
    passes = Passes(config, session)
    for row in range(passes.batch_size):
        passes.prompt(row, [1] * 100)
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


# --- the command line ---


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="bloom_560M", help="preset whose shape is used")
    parser.add_argument(
        "--rows", nargs="+", default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each row, 1 or more")
    parser.add_argument("--work_dir", help="of the maps of `launch`, kept; else temporary")
    arguments, settings = parser.parse_known_args()
    if unknown := [name for name in arguments.rows if name not in ROWS]:
        raise UserError(f"rows must be of {', '.join(ROWS)}, not {', '.join(unknown)}")
    if arguments.repeats < 1:
        raise UserError(f"repeats must be 1 or more, not {arguments.repeats}")
    return arguments, ["--config", arguments.config, *settings]


@contextmanager
def _folder(given: str | None) -> Iterator[Path]:
    """The folder given, which is kept, or one that is gone afterwards."""
    folder = Path(given).expanduser() if given else Path(tempfile.mkdtemp(prefix="popxl_speed_"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        if not given:
            shutil.rmtree(folder, ignore_errors=True)


def _line(what: str, measured: str, needed: str, aim: str, verdict: str, against: str) -> str:
    return f"{what:<40} {measured:>9} {needed:>8} {aim:>8}  {verdict:<13}  {against}".rstrip()


if __name__ == "__main__":
    run_script(main)
