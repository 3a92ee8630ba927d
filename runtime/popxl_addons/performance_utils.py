"""Floating-point operations of a program, as PopXL counts them."""

from __future__ import annotations

import math
from typing import Any

import popxl

KINDS = {"add": "Add", "sub": "Sub", "div": "Div", "mul": "Mul", "matmul": "MatMul"}
"""The kinds of ops that are counted, and PopXL's names of them."""


def total_FLOPs(ir: popxl.Ir) -> int:  # noqa: N802 - PopXL's name
    """Operations of one run of the main graph on all replicas."""
    return evaluate_ir_FLOPs(ir)["TOT"]


def evaluate_ir_FLOPs(ir: popxl.Ir) -> dict[str, Any]:  # noqa: N802 - PopXL's name
    """`evaluate_FLOPs` of the main graph, times the number of replicas."""
    return _times(evaluate_FLOPs(ir.main_graph), ir.replication_factor)


def evaluate_FLOPs(graph: popxl.Graph) -> dict[str, Any]:  # noqa: N802 - PopXL's name
    """Operations of one run of a graph: for each kind those of each op, and "TOT" of all.

    Counted are products of matrices, and sums, differences, products and quotients of elements.
    """
    found: dict[str, Any] = {}
    total = 0
    for number, op in enumerate(graph._ops):
        if op.graphs:
            called = [_times(evaluate_FLOPs(g), op.attributes.get("count", 1)) for g in op.graphs]
            dearest = max(called, key=lambda flops: flops["TOT"])
            total += dearest.pop("TOT")
            for kind, flops in dearest.items():
                found.setdefault(kind, {})[f"{op.kind}_{number}({op.graphs[0].name})"] = flops
        elif op.kind in KINDS:
            count = _count(op)
            total += count
            found.setdefault(KINDS[op.kind], {})[number] = count
    return {**found, "TOT": total}


def print_FLOPs(  # noqa: N802 - PopXL's name
    flops_breakdown: dict[str, Any], mode: str = "type", numerical_format: str = "nearest3"
) -> None:
    """Print what `evaluate_FLOPs` gives, the most first: by kind ("type") or by op ("flat").

    Raises:
        ValueError: for another mode or format.
    """
    if mode not in ("type", "flat"):
        raise ValueError(f"mode {mode!r}: allowed are 'type' and 'flat'")
    rows = flops_breakdown if mode == "type" else _flat(flops_breakdown)
    counts = sorted(((_sum(v), k) for k, v in rows.items()), reverse=True)
    for number, kind in counts:
        print(f"{format_flops_scientific(number, numerical_format):>12} {kind}")


def format_flops_scientific(val: float, format: str = "nearest3") -> str:
    """A number with a power of 10: of thousands ("nearest3"), or K, M, G or T.

    Raises:
        ValueError: for another format.
    """
    powers = {"K": 3, "M": 6, "G": 9, "T": 12}
    if format != "nearest3" and format not in powers:
        raise ValueError(f"format {format!r}: allowed are nearest3, {', '.join(powers)}")
    digits = math.floor(math.log10(abs(val))) if val else 0
    power = powers.get(format, 3 * ((digits + 1) // 3))
    return f"{val * 10.0**-power:.3f}E{power:+03d}"


def _count(op: Any) -> int:
    (out,) = op.outputs
    return out.nelms * (2 * op.inputs[0].shape[-1] if op.kind == "matmul" else 1)


def _times(flops: Any, factor: int) -> Any:
    if isinstance(flops, dict):
        return {key: _times(value, factor) for key, value in flops.items()}
    return flops * factor


def _sum(flops: Any) -> int:
    return sum(map(_sum, flops.values())) if isinstance(flops, dict) else flops


def _flat(flops: dict[Any, Any], prefix: str = "") -> dict[str, int]:
    flat: dict[str, int] = {}
    for key, value in flops.items():
        below = isinstance(value, dict)
        flat.update(_flat(value, f"{prefix}{key}.") if below else {f"{prefix}{key}": value})
    return flat
