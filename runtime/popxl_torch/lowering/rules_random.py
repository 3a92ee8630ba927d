"""How ops that draw random numbers become torch."""

from __future__ import annotations

import operator

from popxl.graph import Op
from torch.fx import Node

from popxl_torch.backends.reference import philox
from popxl_torch.lowering.rules import Emitter, rule


@rule("random_uniform")
def _uniform(b: Emitter, op: Op, args: list[Node]) -> Node:
    out = op.outputs[0]
    return b.call(
        philox.uniform, args[0], b.device, out.shape, op.low, op.high, out.dtype.as_torch()
    )


@rule("random_normal")
def _normal(b: Emitter, op: Op, args: list[Node]) -> Node:
    out = op.outputs[0]
    return b.call(
        philox.normal, args[0], b.device, out.shape, op.mean, op.std, out.dtype.as_torch()
    )


@rule("dropout")
def _dropout(b: Emitter, op: Op, args: list[Node]) -> Node:
    return b.call(philox.dropout, *args, b.lead, op.shape, op.ratio)


@rule("split_random_seed")
def _split_random_seed(b: Emitter, op: Op, args: list[Node]) -> list[Node]:
    seeds = b.call(philox.split, args[0], len(op.outputs))
    return [b.call(operator.getitem, seeds, i) for i in range(len(op.outputs))]
