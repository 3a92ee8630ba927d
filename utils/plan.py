"""What a run needs, from the program alone: no weights are read, nothing is computed."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from popxl import Variable

from config import BloomConfig
from inference import InferenceSession
from utils.loading import build
from utils.memory import peak_memory
from utils.streaming import Streaming, estimate


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
    weight_bytes_all_replicas: int
    streaming: Streaming


def make_plan(
    config: BloomConfig, memory_bytes: int | None = None, disk_rate: float | None = None
) -> Plan:
    """Build the program and look at it.

    Args:
        memory_bytes: of the machine; what is available now where None.
        disk_rate: bytes a second from disk; measured, if weights are larger than memory, where
            None.
    """
    session, seconds = timed_build(config)
    cost = session.pass_graphs["token"].cost()
    weights, state = session.ir.memory()
    variables = [v for v in session.state.values_flat() if isinstance(v, Variable)]
    replicas, folder = config.execution.replicas, config.execution.memmap_dir
    all_bytes = sum(_bytes_on_host(v) for v in variables)
    return Plan(
        replicas=replicas,
        build_seconds=seconds,
        peak_host_bytes=peak_memory(),
        parameters=sum(v.nelms for v in variables),
        parameters_all_replicas=sum(math.prod(v.shape_on_host) for v in variables),
        weight_bytes=weights,
        cache_bytes=state,
        bytes_read_per_token=cost.weight_bytes,
        cache_bytes_per_token=cost.state_bytes,
        operations_per_token=cost.operations,
        collectives_per_token=cost.collective_calls,
        collective_bytes_per_token=cost.collective_bytes,
        weight_bytes_all_replicas=all_bytes,
        streaming=estimate(
            all_bytes,
            min(all_bytes, replicas * cost.weight_bytes),
            replicas * state,
            memory_bytes,
            disk_rate,
            Path(folder).expanduser() if folder else None,
        ),
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
    lines = [f"  {name:<30} {value}" for name, value in rows]
    return "\n".join(["For one replica:", *lines, describe_streaming(plan)])


def describe_streaming(plan: Plan) -> str:
    """Whether all weights fit in memory, and what a token reads from disk if not; one line."""
    streaming = plan.streaming
    sizes = (
        f"All weights are {_size(plan.weight_bytes_all_replicas)}, memory is "
        f"{_size(streaming.memory_bytes)}: "
    )
    if not streaming.disk_bytes_per_token:
        return f"{sizes}nothing is read from disk for a token."
    read = f"{sizes}at least {_size(streaming.disk_bytes_per_token)} are read from disk for a token"
    if streaming.disk_seconds_per_token is None:
        return f"{read}; give its rate with --disk_gb_per_s to know how long that takes."
    rate = _size(streaming.disk_bytes_per_second or 0)
    return f"{read}, {streaming.disk_seconds_per_token:.2f} s at {rate}/s."


def timed_build(config: BloomConfig) -> tuple[InferenceSession, float]:
    """The program's session, and the seconds that building it took."""
    begin = time.perf_counter()
    session = build(config)
    return session, time.perf_counter() - begin


def _bytes_on_host(variable: Variable) -> int:
    return math.prod(variable.shape_on_host) * np.dtype(variable.dtype.as_numpy()).itemsize


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:,.2f} GB"
