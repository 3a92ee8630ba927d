"""The benchmark's command: every combination in turn, and what is printed of it."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from config import BloomConfig
from modelling.program import InferenceSession
from utils import distributed, planning
from utils.benchmark.arguments import BenchmarkArguments, combinations, parse
from utils.benchmark.comparison import Transformers
from utils.benchmark.limits import MachineLimits, sample_bytes
from utils.benchmark.measuring import Rounds, Samples, progress_of
from utils.benchmark.report import Layers, Result, Start, as_json, as_text, result_of
from utils.benchmark.work import work_of
from utils.checkpoints.memmap.manifest import MANIFEST
from utils.checkpoints.memmap.random_maps import make_random_maps
from utils.checkpoints.memmap.reader import MemoryMaps
from utils.checkpoints.random_weights import fill_randomly
from utils.generation.loading import build, check_memory, fitting_layers
from utils.generation.passes import Passes
from utils.our_runtime import machine, peak_memory, restart_peak_memory
from utils.planning import Question, traffic
from utils.setup import setup_logging
from utils.writing import show

logger = logging.getLogger(__name__)

PROGRAM_BYTES = 400_000_000
"""Of Python, PyTorch and what a program keeps besides: 247 MB were resident before any weight."""


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

    Where random weights do not fit in memory, as many layers are measured as do.
    """
    distributed.join(config)
    gc.collect()  # the session before may be in cycles
    restart_peak_memory()
    maps = maps_of(config, arguments.seed) if config.execution.memmap_dir is not None else None
    whole = config = maps.config if maps else config
    taken = PROGRAM_BYTES + sample_bytes(config)
    if maps is None and arguments.compare is None:
        config = with_fitting_layers(config, taken)
    check_memory(config, weights=maps is None, taken=taken)
    generator = np.random.default_rng(arguments.seed)
    begin = time.perf_counter()
    session = build(config)
    compile_seconds = time.perf_counter() - begin
    peer = filled(session, config, arguments, maps, generator)
    work, wanted = work_of(config, session), combinations(config, arguments)
    all_work = work if config is whole else work_of(whole, build(whole, spread=False))
    with session, _bar(config, sum(progress_of(c, arguments.repeats) for c in wanted)) as bar:
        passes = Passes(config, session)
        if not distributed.leads():
            passes.replicas.follow()
            return
        begin = time.perf_counter()
        passes.warm_up()
        first_pass_seconds = time.perf_counter() - begin
        start = Start(compile_seconds, first_pass_seconds, traffic.counted(passes))
        rounds = Rounds(passes, work, all_work, generator, peer, bar.update)
        layers = Layers(config.model.layers, whole.model.layers)
        for combination in wanted:
            together = combination.batch_size * combination.prompt_tokens
            measured.limits = limits = MachineLimits.of(config, together)
            samples = Samples(combination)
            try:
                rounds.run(samples, limits, arguments.repeats)
            finally:
                if samples.steps:
                    peak = peak_memory() - machine.held_bytes()
                    peer_name = arguments.compare
                    result = result_of(samples, start, all_work, limits, peak, layers, peer_name)
                    measured.results.append(result)
        passes.replicas.release()


def filled(
    session: InferenceSession,
    config: BloomConfig,
    arguments: BenchmarkArguments,
    maps: MemoryMaps | None,
    generator: np.random.Generator,
) -> Transformers | None:
    """Give a session weights, of memory maps where there are any, else random ones.

    Returns:
        What is compared with, where that is wanted.
    """
    peer = Transformers(config, arguments.seed) if arguments.compare else None
    if maps:
        maps.write(session)
    elif peer:
        peer.write(config, session)
    else:
        fill_randomly(session, generator)
    return peer


def with_fitting_layers(config: BloomConfig, taken: int) -> BloomConfig:
    """The model with as many of its layers as fit in memory; all, if none do, to be refused.

    Args:
        taken: bytes that the measurement itself takes.
    """
    count = fitting_layers(config, taken)
    if count in (0, config.model.layers):
        return config
    logger.warning(
        "%d of %d layers fit in memory: these are measured, and the whole model is extrapolated",
        count,
        config.model.layers,
    )
    return config.changed(layers=count)


def maps_of(config: BloomConfig, seed: int) -> MemoryMaps:
    """The maps of the configured folder; random ones are made where it has none."""
    folder = Path(str(config.execution.memmap_dir)).expanduser()
    if not (folder / MANIFEST).exists() and not distributed.several():
        logger.warning("%s has no memory maps: random ones are made there", folder)
        make_random_maps(config, seed)
    return MemoryMaps(config)


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
