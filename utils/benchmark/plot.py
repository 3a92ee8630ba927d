"""The picture of a measurement: throughput over batch size, context and prompt, and the limits."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from config import BloomConfig
from utils.benchmark.report import Result

SIZE = (13.0, 4.2)
"""Of the picture, in inches."""

_rows, _length = attrgetter("batch_size"), attrgetter("prompt_tokens")


def draw(config: BloomConfig, results: Sequence[Result], file: Path) -> None:
    """Write the picture as PNG; a file that is there is replaced once it is whole."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        picture(config, results).savefig(part, format="png", dpi=120)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def picture(config: BloomConfig, results: Sequence[Result]) -> Figure:
    """Decoding over batch size, decoding over context, and prompts over their length."""
    figure = Figure(figsize=SIZE, layout="constrained")
    batch, context, prompt = figure.subplots(1, 3)
    model = config.model
    figure.suptitle(
        f"{model.layers} layers, hidden size {model.hidden_size}, {model.precision}, "
        f"{config.execution.tensor_parallel_1} x {config.execution.tensor_parallel_2} shards"
    )
    _panel(batch, results, "batch size", "decode, tokens/s", _rows, _context, _decode)
    _panel(context, results, "context, tokens", "decode, tokens/s", _context, _rows, _decode)
    _panel(prompt, results, "prompt, tokens", "prompt, tokens/s", _length, _rows, _prompt)
    return figure


def _panel(
    axes: Any,
    results: Sequence[Result],
    x_name: str,
    y_name: str,
    x_of: Callable[[Result], int],
    line_of: Callable[[Result], int],
    y_of: Callable[[Result], tuple[float, float]],
) -> None:
    """Lines of the measured throughput, and of the limit in the same colour, dashed."""
    name = "batch" if line_of is _rows else "context"
    for number, line in enumerate(sorted({line_of(r) for r in results})):
        points = sorted((x_of(r), *y_of(r)) for r in results if line_of(r) == line)
        x, measured, limit = zip(*points, strict=True)
        color = f"C{number}"
        axes.plot(x, measured, "o-", color=color, label=f"{name} {line}")
        axes.plot(x, limit, "_--", color=color, label=f"{name} {line}, the limit")
    axes.set(xlabel=x_name, ylabel=y_name, xscale="log")
    axes.set_ylim(bottom=0)
    ticks = sorted({x_of(r) for r in results})
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.legend(fontsize="x-small")
    axes.grid(alpha=0.3)


def _context(result: Result) -> int:
    """In the middle of the new tokens."""
    return result.prompt_tokens + result.new_tokens // 2


def _decode(result: Result) -> tuple[float, float]:
    """Tokens a second, and at the bandwidth that was measured with it."""
    limit = result.batch_size * result.read_bandwidth.median / result.step_bytes
    return result.decode_tokens_per_second.median, limit


def _prompt(result: Result) -> tuple[float, float]:
    """Tokens a second, and at the matmul rate that was measured with it."""
    tokens = result.batch_size * result.prompt_tokens
    limit = tokens * result.matmul_rate.median / result.prompt_operations
    return result.prompt_tokens_per_second.median, limit
