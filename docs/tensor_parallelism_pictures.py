"""How `tensor_parallelism.py` draws what it found in the program."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from tensor_parallelism import (
    Groups,
    Step,
    axis_of,
    grid,
    program,
    result_axes,
    steps,
    told,
)

COLOURS = {"tp1": "#f3b57a", "tp2": "#8db8e8"}
"""Of what is split over an axis."""

INK, LINE, ADDEND = "#222222", "#ffffff", "////"
WIDTH = 1.0
"""Of the bar of the widest step; the height of a step is 1."""


def draw(folder: Path) -> None:
    """Write both pictures as SVG; the same program gives the same files."""
    matplotlib.rcParams.update({"svg.hashsalt": "tensor parallelism", "font.size": 9})
    for name, figure in (("grid", grids()), ("layer", layer())):
        file = folder / f"tensor-parallel-{name}.svg"
        figure.savefig(file, metadata={"Date": None}, bbox_inches="tight", pad_inches=0.1)


def grids() -> Figure:
    """Replica numbers at 2 x 2 and 4 x 4, and what rows and columns share."""
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    for axes, parts in zip(figure.subplots(1, 2), (2, 4), strict=True):
        config, session = program(parts)
        model = config.model
        _grid(axes, grid(session), model.heads // parts, model.hidden_size // parts)
        axes.set_title(f"tp1 = {parts}, tp2 = {parts}")
    return figure


def _grid(axes: Any, numbers: Groups, heads: int, width: int) -> None:
    parts = len(numbers)
    for i1, row in enumerate(numbers):
        for i2, replica in enumerate(row):
            _box(axes, (i2, i1, 0.94, 0.94), "#e4e4e4", f"{replica}", size=14)
        axes.text(
            *(-0.03 * parts, i1 + 0.47, f"heads\n{heads * i1}–{heads * (i1 + 1) - 1}"),
            ha="right", va="center", color=_dark("tp1"),
        )  # fmt: skip
    for i2 in range(parts):
        axes.text(
            *(i2 + 0.47, -0.03 * parts, f"hidden\n{width * i2}–{width * (i2 + 1) - 1}"),
            ha="center", va="bottom", color=_dark("tp2"),
        )  # fmt: skip
    _frame(axes, (-0.25 * parts, parts), (parts, -0.2 * parts))
    axes.set_aspect("equal")


def layer() -> Figure:
    """One token's way through a layer at 2 x 2, and who has what part of every result."""
    config, session = program()
    path = steps(config)
    axes_of, numbers = result_axes(session, path), grid(session)
    wholes = [math.prod(step.shape) * len(numbers) for step in path]
    figure = Figure(figsize=(9.6, 0.62 * len(path) + 0.7))
    axes = figure.subplots()
    for y, (step, axis, whole) in enumerate(zip(path, axes_of, wholes, strict=True)):
        axes.text(-0.29, y + 0.4, told(step).replace("`", ""), ha="right", va="center")
        axes.text(-0.03, y + 0.4, " x ".join(map(str, step.shape)), ha="right", va="center")
        _bars(axes, y, step, axis, numbers, WIDTH * whole / max(wholes))
        if step.groups:
            along = "tp2" if axis_of(session, step.groups) == "tp1" else "tp1"
            pairs = ", ".join(" + ".join(map(str, group)) for group in step.groups)
            note = f"over {along}: {pairs}\n{step.sent:,} bytes a replica"
            axes.text(WIDTH + 0.03, y + 0.4, note, ha="left", va="center", color=_dark(along))
    axes.text(-0.03, -0.35, "a replica has", ha="right", va="center", weight="bold")
    axes.text(0, -0.35, "which replicas have which part", va="center", weight="bold")
    axes.text(WIDTH + 0.03, -0.35, "exchange", va="center", weight="bold")
    _legend(axes, len(path) + 0.3)
    _frame(axes, (-0.95, len(path) + 0.9), (WIDTH + 0.35, -0.75))
    return figure


def _legend(axes: Any, y: float) -> None:
    legend = ((COLOURS["tp1"], "", "split over tp1"), (COLOURS["tp2"], "", "split over tp2"))
    addends = ("#dddddd", ADDEND, "addends, not summed yet")
    for number, (colour, hatch, text) in enumerate((*legend, addends)):
        _box(axes, (0.38 * number, y, 0.05, 0.4), colour, "", hatch=hatch)
        axes.text(0.38 * number + 0.06, y + 0.2, text, va="center")


def _bars(axes: Any, y: int, step: Step, axis: str, numbers: Groups, width: float) -> None:
    """A bar a part; of a matmul's result, which is not summed yet, one for each addend."""
    holders = numbers if axis == "tp1" else [list(column) for column in zip(*numbers, strict=True)]
    each = width / len(holders)
    for part, replicas in enumerate(holders):
        left, addends = part * each, step.kind == "matmul"
        rows = [[r] for r in replicas] if addends else [replicas]
        height = 0.8 / len(rows)
        for number, held in enumerate(rows):
            text = ", ".join(map(str, held))
            place = (left, y + number * height, each - 0.004, height - 0.02)
            _box(axes, place, COLOURS[axis], text, hatch=ADDEND if addends else "")


def _box(axes: Any, place: tuple, colour: str, text: str, size: int = 8, hatch: str = "") -> None:
    left, top, width, height = place
    box = Rectangle((left, top), width, height, facecolor=colour, edgecolor=LINE, hatch=hatch)
    axes.add_patch(box)
    label = {"facecolor": colour, "edgecolor": "none", "pad": 0.6} if hatch else None
    middle = (left + width / 2, top + height / 2)
    axes.text(*middle, text, ha="center", va="center", size=size, color=INK, bbox=label)


def _dark(axis: str) -> str:
    return {"tp1": "#9a4d0b", "tp2": "#1d4f8f"}[axis]


def _frame(axes: Any, low: tuple[float, float], high: tuple[float, float]) -> None:
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.axis("off")
