"""What a program needs, found by building it: no weights are read, nothing is computed."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
from popxl import Variable

from config import BloomConfig, costs
from modelling.program import InferenceSession
from utils.generation.loading import build
from utils.our_runtime import Cost, cost, peak_memory, program_bytes
from utils.planning.traffic import PassTraffic, predicted


@dataclass(frozen=True)
class Needs:
    """What a program needs, for one replica unless said otherwise; sizes in bytes.

    Attributes:
        largest_part_bytes: of the weights that are used together: a layer's, or the embedding's.
        cache_bytes: of the KV cache.
        token: what a token pass costs, with a full cache.
        weight_bytes_all_replicas: what replicas have in common counts once.
        between_processes: by pass, what rank 0 exchanges with others; none in one process.
    """

    config: BloomConfig
    build_seconds: float
    peak_host_bytes: int
    parameters: int
    parameters_all_replicas: int
    weight_bytes: int
    largest_part_bytes: int
    cache_bytes: int
    token: Cost
    weight_bytes_all_replicas: int
    between_processes: dict[str, PassTraffic]


def needs_of(config: BloomConfig) -> Needs:
    """The needs of the program that a configuration builds."""
    begin = time.perf_counter()
    session = build(config)
    seconds = time.perf_counter() - begin
    weights, state = program_bytes(session.ir)
    variables = _variables(session)
    elements = variables  # of a variable, one for each parameter
    if config.model.quantized:
        elements = _variables(build(config.changed(weight_precision="full")))
    return Needs(
        config=config,
        build_seconds=seconds,
        peak_host_bytes=peak_memory(),
        parameters=sum(v.nelms for v in elements),
        parameters_all_replicas=sum(math.prod(v.shape_on_host) for v in elements),
        weight_bytes=weights,
        largest_part_bytes=max(_bytes_of_parts(session)),
        cache_bytes=state - costs.prefix_bytes(config) // config.execution.replicas,
        token=cost(session.pass_graphs["decode"]),
        weight_bytes_all_replicas=sum(_bytes(v, v.shape_on_host) for v in variables),
        between_processes=predicted(config, session),
    )


def _variables(session: InferenceSession) -> list[Variable]:
    return [v for v in session.state.values_flat() if isinstance(v, Variable)]


def _bytes_of_parts(session: InferenceSession) -> list[int]:
    """Bytes of the weights of each part (a layer, the embedding) on one replica."""
    parts: Counter[str] = Counter()
    for name, variable in session.state.to_dict().items():
        if isinstance(variable, Variable):
            parts[name.split(".")[0]] += _bytes(variable, variable.shape)
    return list(parts.values())


def _bytes(variable: Variable, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * np.dtype(variable.dtype.as_numpy()).itemsize
