"""Drawings of a program in Graphviz's DOT language: `Ir.dot_checkpoint`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from popxl.graph import Graph, Op
    from popxl.ir import Ir
    from popxl.tensor import Tensor

VARIABLE = "POPART_DOT_CHECKS"
"""Names of checkpoints, separated by colons; the environment's word beside `dotChecks`."""


class Drawings:
    """Where the drawings of one Ir go, and how many each checkpoint made."""

    def __init__(self, ir: Ir):
        self._ir = ir
        self._made: Counter[str] = Counter()

    def checkpoint(self, check: str) -> None:
        """Draw the program as it is now, where the options or the environment name `check`."""
        options = self._ir._pb_ir.getSessionOptions()
        wanted = {*options.dotChecks, *os.environ.get(VARIABLE, "").split(":")}
        if not {check.upper(), "ALL"} & {name.upper() for name in wanted}:
            return
        count = self._made[check]
        self._made[check] += 1
        name = f"{check}_{count}.dot" if count else f"{check}.dot"
        (Path(options.logDir) / name).write_text(to_dot(self._ir))


def to_dot(ir: Ir) -> str:
    """The program as a digraph: a cluster a graph, a node an op, an edge a tensor."""
    lines = ["digraph popxl {", "  rankdir=TB;", "  node [shape=box];"]
    numbers: dict[Op | Tensor, str] = {}
    for index, graph in enumerate(ir._reachable_graphs()):
        lines += [f"  subgraph cluster_{index} {{", f"    label={_quoted(graph.name or 'main')};"]
        lines += [f"    {line}" for line in _of_graph(graph, numbers)]
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def _of_graph(graph: Graph, numbers: dict[Op | Tensor, str]) -> list[str]:
    """Lines of a cluster: its inputs, variables and constants, its ops, and what joins them."""
    made = {t: op for op in graph._ops for t in op.outputs}
    lines = []
    for tensor in (t for t in graph.tensors if t not in made):
        numbers[tensor] = f"n{len(numbers)}"
        lines.append(f"{numbers[tensor]} [shape=ellipse, label={_quoted(_text(tensor))}];")
    for op in graph._ops:
        numbers[op] = f"n{len(numbers)}"
        calls = "".join(f"\n{called.name}" for called in op.graphs)
        lines.append(f"{numbers[op]} [label={_quoted(op.kind + calls)}];")
        for tensor in op.inputs:
            start = numbers[made.get(tensor, tensor)]
            label = f" [label={_quoted(_text(tensor))}]" if tensor in made else ""
            lines.append(f"{start} -> {numbers[op]}{label};")
    return lines


def _text(tensor: Tensor) -> str:
    return f"{tensor.name}\n{tensor.dtype} {tensor.shape}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
