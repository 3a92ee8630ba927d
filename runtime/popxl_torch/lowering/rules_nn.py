"""How the ops of neural networks become torch: convolutions, pools, resampling."""

from __future__ import annotations

from popxl.graph import Op
from torch.fx import Node

from popxl_torch.backends.reference import convolutions, resampling
from popxl_torch.lowering.rules import Emitter, rule


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
