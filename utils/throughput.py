"""The throughput benchmark: random weights and inputs, and the plan of a run without either."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from popxl import Variable
from simple_parsing import field
from tqdm import tqdm

from config import BloomConfig, parse_arguments
from inference import InferenceSession
from utils import distributed
from utils.memmap.reader import MemoryMaps
from utils.passes import Passes
from utils.plan import describe_plan, make_plan, peak_bytes, timed_build
from utils.setup import UserError, setup_logging

DESCRIPTION = (
    "Measure throughput with random inputs, and random weights or --memmap_dir's, or plan a run "
    "(--dry_run)."
)
POOL = 1 << 20
"""Random numbers that weights are filled with, over and over: timing does not mind."""


@dataclass
class BenchmarkArguments:
    """What to measure."""

    dry_run: bool = field(
        default=False,
        action="store_true",
        help="build the program without weights and print what it needs",
    )
    memory_gb: float = field(
        default=0, help="with --dry_run: memory of the machine; 0: what is available now"
    )
    disk_gb_per_s: float = field(
        default=0, help="with --dry_run: rate that weights can be read at from disk; 0: measured"
    )
    prompt_tokens: int = field(
        default=0,
        help="length of the prompt of every row, 1 or more; 0: 128, or half the context",
    )
    new_tokens: int = field(
        default=0,
        help="tokens to generate in every row, 2 or more; 0: 64, or what the context holds",
    )
    repeats: int = field(default=3, help="measured rounds after one to warm up, 1 or more")
    seed: int = field(default=0, help="of weights and inputs")
    json: bool = field(default=False, action="store_true", help="print one JSON object")


@dataclass(frozen=True)
class Throughput:
    """Medians over the rounds; rates are tokens a second of all rows together."""

    compile_seconds: float
    prompt_seconds: float
    prompt_tokens_per_second: float
    decode_seconds: float
    decode_tokens_per_second: float
    decode_tokens_per_second_slowest: float
    decode_tokens_per_second_fastest: float
    peak_host_bytes: int
    process_collectives_per_token: float
    process_bytes_per_token: float
    process_seconds_per_token: float


def run_benchmark(argv: Sequence[str] | None = None) -> None:
    """The command line of `inference.py`."""
    config, arguments = parse_arguments(
        argv, extra=BenchmarkArguments, prog="inference.py", description=DESCRIPTION
    )
    setup_logging(config.execution.log_level)
    _fill_in(config, arguments)
    _check(config, arguments)
    if arguments.dry_run:
        memory, rate = arguments.memory_gb * 1e9, arguments.disk_gb_per_s * 1e9
        plan = make_plan(config, int(memory) or None, rate or None)
        print(_as_json(plan) if arguments.json else describe_plan(plan))
    else:
        result = measure(config, arguments)
        print(_as_json(result) if arguments.json else describe(config, arguments, result))


def _as_json(result: Any) -> str:
    return json.dumps(asdict(result), indent=2)


def measure(config: BloomConfig, arguments: BenchmarkArguments) -> Throughput:
    """Fill the weights with random numbers and time rounds of prompt and decoding.

    Where the configuration has a folder of memory maps, these are the weights.
    """
    maps = MemoryMaps(config) if config.execution.memmap_dir is not None else None
    config = maps.config if maps else config
    distributed.join(config)
    session, seconds = timed_build(config)
    generator = np.random.default_rng(arguments.seed)
    if maps:
        maps.write(session)
    else:
        fill_randomly(session, generator)
    with session:
        passes = Passes(config, session)
        if not distributed.leads():
            passes.replicas.follow()
        rounds = [
            _round(passes, arguments, generator)
            for _ in tqdm(range(arguments.repeats + 1), desc="rounds", leave=False, disable=None)
        ][1:]
    prompt = statistics.median(r[0] for r in rounds)
    exchanged = [step for r in rounds for step in r[2]]
    steps = [step for r in rounds for step in r[1]]
    decode = statistics.median(steps)
    rows = passes.batch_size
    by_round = [rows / statistics.median(r[1]) for r in rounds]
    return Throughput(
        compile_seconds=seconds,
        prompt_seconds=prompt,
        prompt_tokens_per_second=rows * arguments.prompt_tokens / prompt,
        decode_seconds=decode,
        decode_tokens_per_second=rows / decode,
        decode_tokens_per_second_slowest=min(by_round),
        decode_tokens_per_second_fastest=max(by_round),
        peak_host_bytes=peak_bytes(),
        process_collectives_per_token=statistics.median(t.calls for t in exchanged),
        process_bytes_per_token=statistics.median(t.bytes for t in exchanged),
        process_seconds_per_token=statistics.median(t.seconds for t in exchanged),
    )


def fill_randomly(session: InferenceSession, generator: np.random.Generator) -> None:
    """Give every float variable normal values, the standard deviation that of BLOOM's, 0.02.

    Of the matrices only those of this process's replicas are filled.

    Matrices lie in memory as a checkpoint's do: rows of outputs.
    """
    own = distributed.own_replicas(session.ir.replication_factor)
    pool = generator.standard_normal(POOL, dtype=np.float32) * 0.02
    variables = [v for v in session.state.values_flat() if isinstance(v, Variable)]
    for variable in tqdm(variables, desc="weights", delay=2, leave=False, disable=None):
        shape, dtype = variable.shape_on_host, variable.dtype.as_numpy()
        if not variable.dtype.is_floating_point:
            continue
        is_matrix = variable.rank == 2
        stored = (*shape[:-2], shape[-1], shape[-2]) if is_matrix else shape
        values = np.empty(stored, dtype)
        every_one = is_matrix and len(shape) == 3  # a matrix a replica: another process has others
        for part in (values[replica] for replica in own) if every_one else [values]:
            part[:] = np.resize(pool.astype(dtype), part.shape)
        session.write_variable_data(variable, values.swapaxes(-1, -2) if is_matrix else values)


def _round(
    passes: Passes, arguments: BenchmarkArguments, generator: np.random.Generator
) -> tuple[float, list[float], list[Any]]:
    """Seconds of all prompts, and of each step of decoding after them, and what those exchanged."""
    length, rows = arguments.prompt_tokens, passes.batch_size
    prompts = generator.integers(passes.vocab_size, size=(rows, length))
    begin = time.perf_counter()
    logits = np.stack([passes.prompt(row, list(prompts[row])) for row in range(rows)])
    prompt_seconds = time.perf_counter() - begin
    steps, exchanged = [], []
    for position in range(length, length + arguments.new_tokens - 1):
        tokens = logits.argmax(-1).astype(np.int32)
        before, begin = passes.session.traffic, time.perf_counter()
        logits = passes.token(tokens, np.full(rows, position, np.int32))
        steps.append(time.perf_counter() - begin)
        exchanged.append(passes.session.traffic - before)
    return prompt_seconds, steps, exchanged


def describe(config: BloomConfig, arguments: BenchmarkArguments, result: Throughput) -> str:
    """The measurements as lines for a person."""
    rows, model, execution = config.execution.batch_size, config.model, config.execution
    return "\n".join(
        [
            f"{model.layers} layers, hidden size {model.hidden_size}, {model.heads} heads, "
            f"vocabulary {model.vocab_size}, {model.precision}, "
            f"{execution.tensor_parallel_1} x {execution.tensor_parallel_2} shards, batch {rows}",
            f"compile     {result.compile_seconds:8.2f} s",
            f"prompt      {result.prompt_seconds:8.3f} s   "
            f"{result.prompt_tokens_per_second:9.1f} tokens/s "
            f"({rows} x {arguments.prompt_tokens} tokens)",
            f"decode step {result.decode_seconds:8.4f} s   "
            f"{result.decode_tokens_per_second:9.1f} tokens/s "
            f"(rounds from {result.decode_tokens_per_second_slowest:.1f} "
            f"to {result.decode_tokens_per_second_fastest:.1f})",
            f"peak memory {result.peak_host_bytes / 1e9:8.2f} GB",
            f"processes   {result.process_collectives_per_token:8.0f}     collectives a step of "
            f"{result.process_bytes_per_token / 1e3:.1f} kB, "
            f"{result.process_seconds_per_token:.4f} s of it",
        ]
    )


def _fill_in(config: BloomConfig, arguments: BenchmarkArguments) -> None:
    length = config.model.sequence_length
    if arguments.prompt_tokens == 0:
        arguments.prompt_tokens = max(min(128, length // 2), 1)
    if arguments.new_tokens == 0:
        arguments.new_tokens = max(min(64, length - arguments.prompt_tokens), 2)


def _check(config: BloomConfig, arguments: BenchmarkArguments) -> None:
    least_values = {"prompt_tokens": 1, "new_tokens": 2, "repeats": 1, "seed": 0}
    for name, least in (least_values | {"memory_gb": 0, "disk_gb_per_s": 0}).items():
        value = getattr(arguments, name)
        if value < least:
            raise UserError(f"{name} must be {least} or more, not {value}")
    total = arguments.prompt_tokens + arguments.new_tokens
    if not arguments.dry_run and total > config.model.sequence_length:
        raise UserError(
            f"prompt_tokens + new_tokens must be at most sequence_length = "
            f"{config.model.sequence_length}, not {total}"
        )
