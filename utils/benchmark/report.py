"""What was measured as figures: medians with their spread, shares of limits, JSON and a table."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from config import BloomConfig
from utils.benchmark.limits import MachineLimits
from utils.benchmark.measuring import Samples, Timed
from utils.benchmark.work import Work
from utils.escaping import table
from utils.planning import traffic
from utils.planning.traffic import PassTraffic


@dataclass(frozen=True)
class Spread:
    """A median, and the 10th and 90th percentile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        low, median, high = np.percentile(list(values), (10, 50, 90))
        return cls(float(median), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """Against a peer: its rates, and medians of how many times faster this program's passes are.

    `logits_differ_by`: most that a logit of any pass differed.
    """

    peer: str
    prompt_tokens_per_second: float
    decode_tokens_per_second: float
    prompt_ratio: float
    decode_ratio: float
    logits_differ_by: float


@dataclass(frozen=True)
class Result:
    """One combination; rates are tokens a second of all rows together.

    Attributes:
        layers, measured_layers: of the model, and of them those that were run. Where these are
            fewer, rates and times to tokens are extrapolated to all; what starting took and the
            memory are of those that were run.
        rounds: measured, the last perhaps in part.
        compile_seconds: from settings to a program that can run.
        first_pass_seconds: of every pass run once, with what is made at first use.
        time_to_first_token: seconds from all prompts to a row's first token.
        prompt_operations: that a round's prompts require.
        step_bytes: that a token pass reads, in the middle of the new tokens.
        matmul_precision: the type that matmuls were sampled in.
        matmul_rate: operations a second of the machine.
        read_bandwidth: bytes a second of the machine.
        prompt_share, decode_share: of these two; medians over the passes, each against the
            samples next to it.
        peak_memory_bytes: of the process in this session's life, without the samples' own memory;
            a peer's weights are among it.
        between_processes: by pass, none in one process: medians of the token passes, and the other
            passes run once.
    """

    layers: int
    measured_layers: int
    batch_size: int
    prompt_tokens: int
    new_tokens: int
    rounds: int
    compile_seconds: float
    first_pass_seconds: float
    time_to_first_token: Spread
    prompt_tokens_per_second: Spread
    decode_tokens_per_second: Spread
    prompt_operations: int
    step_bytes: int
    matmul_precision: str
    matmul_rate: Spread
    read_bandwidth: Spread
    prompt_share: float
    decode_share: float
    peak_memory_bytes: int
    between_processes: dict[str, PassTraffic]
    comparison: Comparison | None = None

    @property
    def extrapolated(self) -> bool:
        return self.measured_layers < self.layers


class Layers(NamedTuple):
    """Layers that were run, and those of the whole model."""

    measured: int
    all: int


@dataclass(frozen=True)
class Start:
    """What a session took before it could be measured, and what its passes exchange."""

    compile_seconds: float
    first_pass_seconds: float
    between_processes: dict[str, PassTraffic] = field(default_factory=dict)


def result_of(
    samples: Samples,
    start: Start,
    work: Work,
    limits: MachineLimits,
    peak_memory_bytes: int,
    layers: Layers,
    peer: str | None = None,
) -> Result:
    """The figures of one combination that has a step at least."""
    rows, prompt_tokens, new_tokens = samples.combination
    prompts, steps = samples.prompts, samples.steps
    return Result(
        layers=layers.all,
        measured_layers=layers.measured,
        batch_size=rows,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=len(prompts),
        compile_seconds=start.compile_seconds,
        first_pass_seconds=start.first_pass_seconds,
        time_to_first_token=Spread.of(samples.first_tokens),
        prompt_tokens_per_second=_rates(rows * prompt_tokens, prompts),
        decode_tokens_per_second=_rates(rows, steps),
        prompt_operations=prompts[0].work,
        step_bytes=work.step_bytes(rows, prompt_tokens + new_tokens // 2),
        matmul_precision=limits.matmul_precision,
        matmul_rate=Spread.of(p.limit for p in prompts),
        read_bandwidth=Spread.of(s.limit for s in steps),
        prompt_share=statistics.median(p.share for p in prompts),
        decode_share=statistics.median(s.share for s in steps),
        peak_memory_bytes=peak_memory_bytes,
        between_processes=_between_processes(start, samples),
        comparison=_comparison(samples, peer) if peer else None,
    )


def as_json(
    config: BloomConfig, limits: MachineLimits, results: Sequence[Result], complete: bool
) -> str:
    """One JSON object: the settings, how limits were measured, and the results in order.

    `complete` is false where an interrupt ended the measurement.
    """
    machine = {"device": limits.device, "read_bandwidth_with": limits.reading}
    settings: dict[str, Any] = dataclasses.asdict(config)
    del settings["execution"]["batch_size"]
    whole = {
        "settings": settings,
        "machine": machine,
        "complete": complete,
        "extrapolated": any(result.extrapolated for result in results),
        "results": [asdict(result) for result in results],
    }
    return json.dumps(whole, indent=2)


def as_text(config: BloomConfig, limits: MachineLimits, results: Sequence[Result]) -> str:
    """The results as a table for a person, a combination a line."""
    columns = _columns(results)
    cells = [[name for name, _ in columns]]
    cells += [[show(result) for _, show in columns] for result in results]
    return "\n".join([*_heading(config, limits, results), "", *table(cells, right=True)])


def _heading(config: BloomConfig, limits: MachineLimits, results: Sequence[Result]) -> list[str]:
    model, execution, first = config.model, config.execution, results[0]
    precisions = " or ".join(dict.fromkeys(r.matmul_precision for r in results))
    return [
        f"{model.layers} layers, hidden size {model.hidden_size}, {model.heads} heads, vocabulary "
        f"{model.vocab_size}, {model.precisions}, "
        f"{execution.tensor_parallel_1} x {execution.tensor_parallel_2} shards",
        *_extrapolation(results),
        f"limits: memory read by {limits.reading}; torch.mm in {precisions}",
        f"compiled in {first.compile_seconds:.2f} s, "
        f"each pass run once in {first.first_pass_seconds:.2f} s",
        *traffic.lines(first.between_processes),
    ]


def _extrapolation(results: Sequence[Result]) -> list[str]:
    """A line, where not all layers were measured."""
    if not any(result.extrapolated for result in results):
        return []
    counts = " or ".join(dict.fromkeys(str(r.measured_layers) for r in results))
    return [
        f"EXTRAPOLATED from {counts} measured layers of {results[0].layers}, as many as fit in "
        "memory: times and rates are the whole model's at their shares of the limits; start and "
        "peak are of the measured layers"
    ]


def _columns(results: Sequence[Result]) -> list[tuple[str, Any]]:
    """Headers, and what shows a result's value under them."""
    columns = [
        ("batch", lambda r: f"{r.batch_size}"),
        ("prompt", lambda r: f"{r.prompt_tokens}"),
        ("new", lambda r: f"{r.new_tokens}"),
        ("first token", lambda r: f"{r.time_to_first_token.median:.3f} s"),
        ("prompt tok/s", lambda r: f"{r.prompt_tokens_per_second.median:.1f}"),
        ("of matmul rate", lambda r: _share(r.prompt_share, r.matmul_rate.median / 1e9, "GFLOP/s")),
        ("decode tok/s (10-90 %)", lambda r: _with_spread(r.decode_tokens_per_second)),
        ("of bandwidth", lambda r: _share(r.decode_share, r.read_bandwidth.median / 1e9, "GB/s")),
        ("peak", lambda r: f"{r.peak_memory_bytes / 1e9:.2f} GB"),
    ]
    if any(result.extrapolated for result in results):
        columns.insert(0, ("layers measured", lambda r: f"{r.measured_layers} of {r.layers}"))
    if results[0].comparison is None:
        return columns
    return [
        *columns,
        (f"prompt: x {results[0].comparison.peer}", lambda r: f"{r.comparison.prompt_ratio:.2f}"),
        (f"decode: x {results[0].comparison.peer}", lambda r: f"{r.comparison.decode_ratio:.2f}"),
    ]


def _share(share: float, limit: float, unit: str) -> str:
    return f"{share:.0%} of {limit:.3g} {unit}"


def _with_spread(spread: Spread) -> str:
    return f"{spread.median:.1f} ({spread.low:.1f}-{spread.high:.1f})"


def _rates(tokens: int, passes: Iterable[Timed]) -> Spread:
    return Spread.of(tokens / p.seconds for p in passes)


def _between_processes(start: Start, samples: Samples) -> dict[str, PassTraffic]:
    passes = start.between_processes
    return passes | {"decode": traffic.typical(samples.exchanged)} if passes else {}


def _comparison(samples: Samples, peer: str) -> Comparison:
    rows, prompt_tokens, _ = samples.combination
    prompt, decode = (
        [(p.peer_seconds, p.peer_seconds / p.seconds) for p in passes if p.peer_seconds]
        for passes in (samples.prompts, samples.steps)
    )
    return Comparison(
        peer=peer,
        prompt_tokens_per_second=rows * prompt_tokens / _median(prompt, 0),
        decode_tokens_per_second=rows / _median(decode, 0),
        prompt_ratio=_median(prompt, 1),
        decode_ratio=_median(decode, 1),
        logits_differ_by=samples.logits_differ_by,
    )


def _median(pairs: Sequence[tuple[float, float]], index: int) -> float:
    return statistics.median(pair[index] for pair in pairs)
