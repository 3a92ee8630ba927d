"""The throughput benchmark: random weights and inputs, and the plan of a run without either."""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import popxl_addons as addons
from simple_parsing import field
from tqdm import tqdm

from config import BloomConfig, parse_arguments
from inference import Passes
from utils.setup import UserError, setup_logging

DESCRIPTION = "Measure throughput with random weights and inputs, or plan a run (--dry_run)."
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
    prompt_tokens: int | None = field(
        default=None,
        nargs=None,
        metavar="int",
        help="length of the prompt of every row, 1 or more (default: 128, or half the context)",
    )
    new_tokens: int | None = field(
        default=None,
        nargs=None,
        metavar="int",
        help="tokens to generate in every row, 2 or more (default: 64, or what the context holds)",
    )
    repeats: int = field(default=3, help="measured rounds after one to warm up, 1 or more")
    seed: int = field(default=0, help="of weights and inputs")
    json: bool = field(default=False, action="store_true", help="print one JSON object")


@dataclass(frozen=True)
class Plan:
    """What a program needs, for one replica unless said otherwise; sizes in bytes.

    `bytes_read_per_token`: weights that one token pass reads; `cache_bytes_per_token`: the KV cache
    when it is full. `collective_bytes_per_token`: of the tensors that go into its collectives.
    """

    replicas: int
    build_seconds: float
    peak_host_bytes: int
    parameters: int
    parameters_all_replicas: int
    weight_bytes: int
    cache_bytes: int
    bytes_read_per_token: int
    cache_bytes_per_token: int
    operations_per_token: int
    collectives_per_token: int
    collective_bytes_per_token: int


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


def run_benchmark(argv: Sequence[str] | None = None) -> None:
    """The command line of `inference.py`."""
    config, arguments = parse_arguments(
        argv, extra=BenchmarkArguments, prog="inference.py", description=DESCRIPTION
    )
    setup_logging(config.execution.log_level)
    _fill_in(config, arguments)
    _check(config, arguments)
    result = plan(config) if arguments.dry_run else measure(config, arguments)
    if arguments.json:
        print(json.dumps(asdict(result), indent=2))
    else:
        print(describe_plan(result) if arguments.dry_run else describe(config, arguments, result))


def plan(config: BloomConfig) -> Plan:
    """Build the program and look at it."""
    session, seconds = _timed_build(config)
    cost = session.passes["token"].cost()
    weights, state = session.ir.memory()
    variables = session.state.values_flat()
    return Plan(
        replicas=config.execution.replicas,
        build_seconds=seconds,
        peak_host_bytes=_peak_bytes(),
        parameters=sum(v.nelms for v in variables),
        parameters_all_replicas=sum(int(np.prod(v.shape_on_host)) for v in variables),
        weight_bytes=weights,
        cache_bytes=state,
        bytes_read_per_token=cost.weight_bytes,
        cache_bytes_per_token=cost.state_bytes,
        operations_per_token=cost.operations,
        collectives_per_token=cost.collective_calls,
        collective_bytes_per_token=cost.collective_bytes,
    )


def measure(config: BloomConfig, arguments: BenchmarkArguments) -> Throughput:
    """Fill the weights with random numbers and time rounds of prompt and decoding."""
    session, seconds = _timed_build(config)
    generator = np.random.default_rng(arguments.seed)
    fill_randomly(session, generator)
    with session:
        passes = Passes(config, session)
        rounds = [
            _round(passes, arguments, generator)
            for _ in tqdm(range(arguments.repeats + 1), desc="rounds", leave=False, disable=None)
        ][1:]
    prompt = statistics.median(r[0] for r in rounds)
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
        peak_host_bytes=_peak_bytes(),
    )


def fill_randomly(session: addons.TaskSession, generator: np.random.Generator) -> None:
    """Give every float variable normal values, the standard deviation that of BLOOM's, 0.02.

    Matrices lie in memory as a checkpoint's do: rows of outputs.
    """
    pool = generator.standard_normal(POOL, dtype=np.float32) * 0.02
    variables = session.state.values_flat()
    for variable in tqdm(variables, desc="weights", delay=2, leave=False, disable=None):
        shape, dtype = variable.shape_on_host, variable.dtype.as_numpy()
        if not variable.dtype.is_floating_point:
            continue
        is_matrix = variable.rank == 2
        stored = (*shape[:-2], shape[-1], shape[-2]) if is_matrix else shape
        values = np.resize(pool.astype(dtype), stored)
        session.write_variable_data(variable, values.swapaxes(-1, -2) if is_matrix else values)


def _round(
    passes: Passes, arguments: BenchmarkArguments, generator: np.random.Generator
) -> tuple[float, list[float]]:
    """Seconds of all prompts, and of each step of decoding after them."""
    length, rows = arguments.prompt_tokens, passes.batch_size
    prompts = generator.integers(passes.vocab_size, size=(rows, length))
    begin = time.perf_counter()
    logits = np.stack([passes.prompt(row, list(prompts[row])) for row in range(rows)])
    prompt_seconds = time.perf_counter() - begin
    steps = []
    for position in range(length, length + arguments.new_tokens - 1):
        tokens = logits.argmax(-1).astype(np.int32)
        begin = time.perf_counter()
        logits = passes.token(tokens, np.full(rows, position, np.int32))
        steps.append(time.perf_counter() - begin)
    return prompt_seconds, steps


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
        ]
    )


def describe_plan(plan: Plan) -> str:
    """The plan as lines for a person."""
    rows = [
        ("replicas", f"{plan.replicas}"),
        ("parameters", f"{plan.parameters:,} ({plan.parameters_all_replicas:,} in all replicas)"),
        ("weights", _size(plan.weight_bytes)),
        ("KV cache", _size(plan.cache_bytes)),
        ("weights read a token", _size(plan.bytes_read_per_token)),
        ("cache read a token, when full", _size(plan.cache_bytes_per_token)),
        ("operations a token", f"{plan.operations_per_token / 1e9:,.3f} G"),
        (
            "collectives a token",
            f"{plan.collectives_per_token} of {_size(plan.collective_bytes_per_token)} in all",
        ),
        ("program built in", f"{plan.build_seconds:.1f} s, {_size(plan.peak_host_bytes)} of host"),
    ]
    return "For one replica:\n" + "\n".join(f"  {name:<30} {value}" for name, value in rows)


def _timed_build(config: BloomConfig) -> tuple[addons.TaskSession, float]:
    from utils.loading import build

    begin = time.perf_counter()
    session = build(config)
    return session, time.perf_counter() - begin


def _fill_in(config: BloomConfig, arguments: BenchmarkArguments) -> None:
    length = config.model.sequence_length
    if arguments.prompt_tokens is None:
        arguments.prompt_tokens = max(min(128, length // 2), 1)
    if arguments.new_tokens is None:
        arguments.new_tokens = max(min(64, length - arguments.prompt_tokens), 2)


def _check(config: BloomConfig, arguments: BenchmarkArguments) -> None:
    for name, least in (("prompt_tokens", 1), ("new_tokens", 2), ("repeats", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value < least:
            raise UserError(f"{name} must be {least} or more, not {value}")
    total = arguments.prompt_tokens + arguments.new_tokens
    if not arguments.dry_run and total > config.model.sequence_length:
        raise UserError(
            f"prompt_tokens + new_tokens must be at most sequence_length = "
            f"{config.model.sequence_length}, not {total}"
        )


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:,.2f} GB"
