"""The benchmark's command: every combination in turn, and what is printed of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from config import BloomConfig
from utils import distributed, planning
from utils.benchmark.arguments import BenchmarkArguments, combinations, parse
from utils.benchmark.comparison import Transformers
from utils.benchmark.limits import MachineLimits
from utils.benchmark.measuring import Rounds, Samples, progress_of
from utils.benchmark.report import Result, Start, as_json, as_text, result_of
from utils.benchmark.work import work_of
from utils.checkpoints.memmap.reader import MemoryMaps
from utils.checkpoints.random_weights import fill_randomly
from utils.generation.loading import check_memory
from utils.generation.passes import Passes
from utils.our_runtime import machine, peak_memory, restart_peak_memory
from utils.planning import Question, traffic
from utils.planning.needs import timed_build
from utils.setup import setup_logging
from utils.writing import show


def run_benchmark(argv: Sequence[str] | None = None) -> None:
    """The command line of `inference.py`.

    Raises:
        KeyboardInterrupt: after what was measured so far is printed.
    """
    configs, arguments = parse(argv)
    setup_logging(configs[0].execution.log_level)
    if arguments.dry_run:
        print_plan(configs[0], arguments)
        return
    measured = Measured()
    try:
        for config in configs:
            measure(config, arguments, measured)
        measured.complete = True
    finally:
        report(configs[0], arguments, measured)


def print_plan(config: BloomConfig, arguments: BenchmarkArguments) -> None:
    question = Question(
        machine=arguments.machine,
        machines_file=arguments.machines,
        devices=arguments.devices or None,
        memory_bytes=arguments.memory_gb * 1e9 or None,
        disk_rate=arguments.disk_gb_per_s * 1e9 or None,
        context=arguments.context or None,
    )
    plan = planning.make_plan(config, question)
    show(planning.as_json(plan) if arguments.json else planning.as_text(plan))


@dataclass
class Measured:
    """The results so far."""

    limits: MachineLimits | None = None
    results: list[Result] = field(default_factory=list)
    complete: bool = False


def measure(config: BloomConfig, arguments: BenchmarkArguments, measured: Measured) -> None:
    """All combinations of one batch size. What is measured when it is interrupted is kept.

    Where the configuration has a folder of memory maps, these are the weights.
    """
    distributed.join(config)
    gc.collect()  # the session before may be in cycles
    restart_peak_memory()
    maps = MemoryMaps(config) if config.execution.memmap_dir is not None else None
    config = maps.config if maps else config
    check_memory(config, weights=maps is None)
    generator = np.random.default_rng(arguments.seed)
    session, compile_seconds = timed_build(config)
    peer = Transformers(config, arguments.seed) if arguments.compare else None
    if maps:
        maps.write(session)
    elif peer:
        peer.write(config, session)
    else:
        fill_randomly(session, generator)
    work, wanted = work_of(config, session), combinations(config, arguments)
    total = sum(progress_of(c, arguments.repeats) for c in wanted)
    with session, _bar(config, total) as bar:
        passes = Passes(config, session)
        if not distributed.leads():
            passes.replicas.follow()
            return
        warm_up_seconds = _seconds(passes.warm_up)
        start = Start(compile_seconds, warm_up_seconds, traffic.counted(passes))
        rounds = Rounds(passes, work, generator, peer, bar.update)
        for combination in wanted:
            measured.limits = limits = MachineLimits.of(config, combination.prompt_tokens)
            samples = Samples(combination)
            try:
                rounds.run(samples, limits, arguments.repeats)
            finally:
                if samples.steps:
                    peak = peak_memory() - machine.held_bytes()
                    result = result_of(samples, start, work, limits, peak, arguments.compare)
                    measured.results.append(result)
        passes.replicas.release()


def report(config: BloomConfig, arguments: BenchmarkArguments, measured: Measured) -> None:
    """Print the results, and draw them where that is wanted; nothing where there are none."""
    limits, results = measured.limits, measured.results
    if limits is None or not results:
        return
    if arguments.json:
        show(as_json(config, limits, results, measured.complete))
    else:
        show(as_text(config, limits, results))
    if arguments.plot is not None:
        from utils.benchmark.plot import draw  # late: nothing else needs matplotlib

        draw(config, results, Path(arguments.plot))


def _bar(config: BloomConfig, total: int) -> tqdm:
    """On stderr, where that is a terminal."""
    rows = config.execution.batch_size
    return tqdm(total=total, desc=f"batch {rows}", unit="pass", leave=False, disable=None)


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
