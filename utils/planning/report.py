"""A plan as lines for a person, and as JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from utils.escaping import table
from utils.planning import traffic
from utils.planning.forecast import Forecast
from utils.planning.needs import Needs
from utils.planning.plan import Plan
from utils.planning.streaming import Streaming

HEADINGS = (
    "shards",
    "devices",
    "memory",
    "where",
    "reading",
    "arithmetic",
    "communication",
    "calls",
    "streaming",
    "a token",
)
NOTE = (
    "Memory is a device's, times are a token's: the longer of reading and arithmetic, then\n"
    "communication and calls; streaming runs under them."
)


def as_text(plan: Plan) -> str:
    """The plan in lines."""
    lines = _needs_lines(plan.needs)
    if plan.streaming is not None:
        return "\n".join([*lines, _streaming_line(plan.needs, plan.streaming)])
    return "\n".join([*lines, *_machine_lines(plan)])


def as_json(plan: Plan) -> str:
    """The plan as one object; seconds, bytes, bytes a second."""
    content = _needs_dict(plan.needs)
    if plan.streaming is not None:
        content["streaming"] = dataclasses.asdict(plan.streaming)
    if plan.machine is not None:
        best = plan.forecasts[0] if plan.forecasts else None
        content |= {
            "machine": dataclasses.asdict(plan.machine),
            "configured": plan.configured and _forecast_dict(plan.configured),
            "best": best and _forecast_dict(best),
            "shardings": [_forecast_dict(f) for f in plan.forecasts],
        }
    return json.dumps(content, indent=2)


# --- what the program needs ---


def _needs_dict(needs: Needs) -> dict[str, Any]:
    token = needs.token
    return {
        "replicas": needs.config.execution.replicas,
        "build_seconds": needs.build_seconds,
        "peak_host_bytes": needs.peak_host_bytes,
        "parameters": needs.parameters,
        "parameters_all_replicas": needs.parameters_all_replicas,
        "weight_bytes": needs.weight_bytes,
        "largest_part_bytes": needs.largest_part_bytes,
        "cache_bytes": needs.cache_bytes,
        "bytes_read_per_token": token.weight_bytes,
        "cache_bytes_per_token": token.state_bytes,
        "operations_per_token": token.operations,
        "calls_per_token": token.calls,
        "collectives_per_token": token.collective_calls,
        "collective_bytes_per_token": token.collective_bytes,
        "between_processes": {
            name: dataclasses.asdict(passed) for name, passed in needs.between_processes.items()
        },
        "weight_bytes_all_replicas": needs.weight_bytes_all_replicas,
    }


def _needs_lines(needs: Needs) -> list[str]:
    token, host = needs.token, _size(needs.peak_host_bytes)
    rows = [
        ("replicas", f"{needs.config.execution.replicas}"),
        ("parameters", f"{needs.parameters:,} ({needs.parameters_all_replicas:,} in all replicas)"),
        ("weights", _size(needs.weight_bytes)),
        ("KV cache", _size(needs.cache_bytes)),
        ("weights read a token", _size(token.weight_bytes)),
        ("cache read a token, when full", _size(token.state_bytes)),
        ("operations a token", f"{token.operations / 1e9:,.3f} G in {token.calls:,} calls"),
        (
            "collectives a token",
            f"{token.collective_calls} of {_size(token.collective_bytes)} in all",
        ),
        ("program built in", f"{needs.build_seconds:.1f} s, {host} of host"),
    ]
    needed = [f"  {name:<30} {value}" for name, value in rows]
    return ["For one replica:", *needed, *traffic.lines(needs.between_processes)]


def _streaming_line(needs: Needs, streaming: Streaming) -> str:
    """Whether all weights fit in memory, and what a token reads from disk if not."""
    sizes = (
        f"All weights are {_size(needs.weight_bytes_all_replicas)}, memory is "
        f"{_size(streaming.memory_bytes)}: "
    )
    if not streaming.disk_bytes_per_token:
        return f"{sizes}nothing is read from disk for a token."
    read = f"{sizes}at least {_size(streaming.disk_bytes_per_token)} are read from disk for a token"
    if streaming.disk_seconds_per_token is None:
        return f"{read}; give its rate with --disk_gb_per_s to know how long that takes."
    rate = _size(streaming.disk_bytes_per_second or 0)
    return f"{read}, {streaming.disk_seconds_per_token:.2f} s at {rate}/s."


# --- what a machine makes of it ---


def _machine_lines(plan: Plan) -> list[str]:
    config, machine = plan.needs.config, plan.machine
    assert machine is not None
    shown = _shown(plan)
    figures = table([HEADINGS, *map(_cells, shown)], right=True)
    marks = ["", *(_marks(f, plan) for f in shown)]
    rows = [f"  {line}  {mark}".rstrip() for line, mark in zip(figures, marks, strict=True)]
    head = (
        f"On {machine.name}, {machine.description}: {_count(machine.devices, 'device')}, "
        f"{_count(config.execution.batch_size, 'sequence')} of {shown[0].context} tokens"
    )
    return [head, *rows, *_remarks(plan)]


def _shown(plan: Plan) -> list[Forecast]:
    shown = list(plan.forecasts)
    if plan.configured is not None and plan.configured not in shown:
        shown.append(plan.configured)
    return shown


def _marks(f: Forecast, plan: Plan) -> str:
    """What stands behind its row."""
    best = ["best"] if plan.forecasts and f == plan.forecasts[0] and f.fits else []
    return ", ".join([*best, *(["as configured"] if f == plan.configured else [])])


def _cells(f: Forecast) -> tuple[str, ...]:
    times = (f.reading, f.arithmetic, f.communication, f.calls, f.streaming, f.seconds)
    return (
        f"{f.tensor_parallel_1} x {f.tensor_parallel_2}",
        f"{f.devices}",
        _size(f.memory_bytes),
        f.place if f.fits else "does not fit",
        *(_duration(t) for t in times),
    )


def _remarks(plan: Plan) -> list[str]:
    assert plan.machine is not None
    lines = [NOTE]
    if plan.machine.assumed:
        lines.append(f"Assumed of {plan.machine.name}: {', '.join(plan.machine.assumed)}.")
    if any(f.cache_bytes for f in _shown(plan)):
        least = _size(min(f.cache_bytes for f in _shown(plan) if f.cache_bytes))
        lines.append(f"The cache does not fit: {least} of it or more are copied in and back.")
    if plan.configured is None:
        replicas, devices = plan.needs.config.execution.replicas, plan.machine.devices
        lines.append(f"The {replicas} replicas configured cannot be shared by {devices} devices.")
    elif not plan.forecasts:
        lines.append(f"No sharding of one replica a device is possible on {plan.machine.devices}.")
    return lines


def _forecast_dict(f: Forecast) -> dict[str, Any]:
    return dataclasses.asdict(f) | {"fits": f.fits, "seconds": f.seconds}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _duration(seconds: float) -> str:
    if not seconds:
        return "-"
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3f} ms"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:,.2f} GB"
