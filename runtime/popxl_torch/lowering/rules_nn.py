"""How the ops of neural networks become torch: convolutions, pools, norms, resampling, losses."""

from __future__ import annotations

import operator
from typing import Any

from popxl.graph import Op
from torch.fx import Node

from popxl_torch.backends.reference import convolutions, losses, resampling
from popxl_torch.backends.reference import functions as kernels
from popxl_torch.lowering.rules import Emitter, rule


@rule("conv")
def _conv(b: Emitter, op: Op, args: list[Node]) -> Node:
    strides, dilations = (tuple(getattr(w, n) for w in op.windows) for n in ("stride", "dilation"))
    ends = tuple((w.lower, w.upper) for w in op.windows)
    return b.call(convolutions.conv, *args, b.lead, strides, ends, dilations, op.groups)


@rule("conv_transpose")
def _conv_transpose(b: Emitter, op: Op, args: list[Node]) -> Node:
    return b.call(convolutions.conv_transpose, *args, b.lead, op.stride, op.cuts, op.groups)


@rule("max_pool")
def _max_pool(b: Emitter, op: Op, args: list[Node]) -> Node:
    return b.call(convolutions.MaxPool(op.windows), args[0])


@rule("average_pool")
def _average_pool(b: Emitter, op: Op, args: list[Node]) -> Node:
    return b.call(convolutions.AveragePool(op.windows, b.device), args[0])


@rule("group_norm")
def _group_norm(b: Emitter, op: Op, args: list[Node]) -> Node:
    return b.call(kernels.group_norm, *args, b.lead, op.num_groups, op.eps)


@rule("batch_norm_inference")
def _batch_norm(b: Emitter, op: Op, args: list[Node]) -> Node:
    return b.call(kernels.batch_norm, *args, b.lead, op.eps)


@rule("interpolate")
def _interpolate(b: Emitter, op: Op, args: list[Node]) -> Node:
    return b.call(resampling.Interpolate(op, b.device), args[0])


@rule("roi_align")
def _roi_align(b: Emitter, op: Op, args: list[Node]) -> Node:
    return b.call(resampling.roi_align, *args, b.lead, op.scale, op.samples, op.size)


@rule("nll_loss")
def _nll_loss(b: Emitter, op: Op, args: list[Node]) -> Node:
    settings = op.ignore, op.reduction, op.log_prob
    return b.call(losses.nll_loss, *args, b.lead, *settings)


@rule("nll_loss_with_softmax_grad")
def _nll_loss_with_grad(b: Emitter, op: Op, args: list[Node]) -> Any:
    both = b.call(losses.nll_loss_with_softmax_grad, *args, b.lead, op.ignore, op.reduction)
    return [b.call(operator.getitem, both, i) for i in (0, 1)]
