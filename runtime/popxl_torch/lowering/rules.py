"""How each kind of op becomes torch: a small function a kind, which adds nodes to a torch.fx graph.

A rule gets the op, the nodes of its inputs and an `Emitter`; it returns the node of the output (a
list of nodes for several). An op that is one call has a line in `rules_table.py` instead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from popxl.graph import Op
from torch.fx import Node

from popxl_torch.backends.back_end import BackEnd, first_of
from popxl_torch.backends.reference import convolutions, indexing, reductions, resampling
from popxl_torch.backends.reference import functions as kernels
from popxl_torch.backends.reference.back_end import Reference
from popxl_torch.backends.reference.matmul import matmul
from popxl_torch.backends.specs import LinearSpec, NormSpec
from popxl_torch.collectives.across import AcrossProcesses, of_op
from popxl_torch.collectives.within import Collectives


class Emitter(Protocol):
    """What a rule may use."""

    lead: int
    device: torch.device
    collectives: Collectives | AcrossProcesses
    back_end: BackEnd

    def call(self, function: Callable, *args: Any, **kwargs: Any) -> Node:
        """Add a call."""


Rule = Callable[[Emitter, Op, list[Node]], Any]
RULES: dict[str, Rule] = {}


def rule(*kinds: str) -> Callable[[Rule], Rule]:
    """Register a rule."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return register


def rule_of(kind: str) -> Rule:
    """The rule of a kind of op.

    Raises:
        NotImplementedError: where none is registered.
    """
    if kind not in RULES:
        files = __name__.replace(".", "/")
        raise NotImplementedError(
            f"op {kind!r} has no entry in RULES: register a function with @rule({kind!r}) in one "
            f"of runtime/{files}*.py"
        )
    return RULES[kind]


def from_end(op: Op) -> tuple[int, ...]:
    """The axes of an op counted from the end of its first input, whatever mesh is in front."""
    return tuple(axis - op.inputs[0].rank for axis in op.axes)


# --- elements ---


def aligned(b: Emitter, op: Op, args: list[Node], rank: int) -> list[Node]:
    """The inputs with axes inserted so that they broadcast behind the mesh."""
    if not b.lead:
        return args
    return [
        a if t.rank == rank else b.call(kernels.align, a, b.lead, rank - t.rank)
        for a, t in zip(args, op.inputs, strict=True)
    ]


@rule(*kernels.ELEMENTWISE)
def _elementwise(b: Emitter, op: Op, args: list[Node]) -> Node:
    rank = max(t.rank for t in op.inputs)
    return b.call(kernels.ELEMENTWISE[op.kind], *aligned(b, op, args, rank))


@rule("div", "fmod")
def _divide(b: Emitter, op: Op, args: list[Node]) -> Node:
    args = aligned(b, op, args, max(t.rank for t in op.inputs))
    if op.inputs[0].dtype.is_floating_point:
        return b.call(torch.div if op.kind == "div" else torch.fmod, *args)
    return b.call(kernels.integer_div if op.kind == "div" else kernels.integer_fmod, *args)


@rule("clip")
def _clip(b: Emitter, op: Op, args: list[Node]) -> Node:
    bounds = {"min": op.min, "max": op.max}
    finite = {k: v for k, v in bounds.items() if abs(v) != float("inf")}
    return b.call(kernels.clip, args[0], **finite) if finite else args[0]


# --- reductions ---


@rule(*reductions.REDUCTIONS)
def _reduce(b: Emitter, op: Op, args: list[Node]) -> Node:
    dims = from_end(op)
    if not dims:
        return b.call(reductions.OF_ONE.get(op.kind, kernels.clone), args[0])
    return b.call(reductions.REDUCTIONS[op.kind], args[0], dim=dims, keepdim=op.keepdims)


@rule("layer_norm")
def _layer_norm(b: Emitter, op: Op, args: list[Node]) -> Node:
    spec, back_ends = NormSpec(b.lead, op.eps), (b.back_end, Reference())
    run = first_of(op.kind, *(functools.partial(each.norm, spec) for each in back_ends))
    return b.call(run, *args)


# --- shape ---


@rule("identity")
def _identity(b: Emitter, op: Op, args: list[Node]) -> Node:
    return args[0]


@rule("concat")
def _concat(b: Emitter, op: Op, args: list[Node]) -> Node:
    out, axis = op.outputs[0], op.axis - op.inputs[0].rank
    given = b.lead, axis, out.dtype.as_torch(), out.rank
    return b.call(b.back_end.concat(*given) or Reference().concat(*given), *args)


# --- matmul ---


@rule("matmul")
def _matmul(b: Emitter, op: Op, args: list[Node]) -> Node:
    (x, w), dtype = args, op.outputs[0].dtype.as_torch()
    x_rank, w_rank = (t.rank for t in op.inputs)
    if x_rank == w_rank >= 3 and op.inputs[0].dtype.is_floating_point:
        spec, back_ends = LinearSpec(b.lead, dtype), (b.back_end, Reference())
        run = first_of(op.kind, *(functools.partial(each.batched, spec) for each in back_ends))
        return b.call(run, x, w)
    if x_rank == 1:
        x = b.call(torch.unsqueeze, x, -2)
    if w_rank == 1:
        w = b.call(torch.unsqueeze, w, -1)
    product = b.call(matmul, x, w, b.lead, dtype)
    if x_rank == 1:
        product = b.call(torch.squeeze, product, -2 if w_rank > 1 else -1)
    if w_rank == 1:
        product = b.call(torch.squeeze, product, -1)
    return product


# --- windows, other sizes ---


@rule("conv")
def _conv(b: Emitter, op: Op, args: list[Node]) -> Node:
    strides, dilations = (tuple(getattr(w, n) for w in op.windows) for n in ("stride", "dilation"))
    ends = tuple((w.lower, w.upper) for w in op.windows)
    return b.call(convolutions.conv, *args, b.lead, strides, ends, dilations, op.groups)


@rule("max_pool")
def _max_pool(b: Emitter, op: Op, args: list[Node]) -> Node:
    return b.call(convolutions.MaxPool(op.windows), args[0])


@rule("average_pool")
def _average_pool(b: Emitter, op: Op, args: list[Node]) -> Node:
    return b.call(convolutions.AveragePool(op.windows, b.device), args[0])


@rule("interpolate")
def _interpolate(b: Emitter, op: Op, args: list[Node]) -> Node:
    return b.call(resampling.Interpolate(op, b.device), args[0])


# --- indexing ---


@rule("gather")
def _gather(b: Emitter, op: Op, args: list[Node]) -> Node:
    groups = int(op.attributes.get("grouped", False))  # their axis is as another one of the mesh
    lead, axis = b.lead + groups, op.axis - groups
    return b.call(indexing.gather, *args, lead, axis, op.zero_out_of_range)


# --- creation, copies, host ---


@rule("init")
def _init(b: Emitter, op: Op, args: list[Node]) -> Node:
    out = op.outputs[0]
    return b.call(
        torch.zeros, (1,) * b.lead + out.shape, dtype=out.dtype.as_torch(), device=b.device
    )


@rule("copy")
def _copy(b: Emitter, op: Op, args: list[Node]) -> Node:
    return b.call(kernels.clone, args[1])


# --- collectives ---


@rule("all_reduce", "all_gather", "reduce_scatter")
def _collective(b: Emitter, op: Op, args: list[Node]) -> Node:
    return b.call(of_op(op, b.collectives), args[0])
