"""The rules of ops that are one call: for each kind the function and what it is given."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from popxl.graph import Op
from torch.fx import Node

from popxl_torch.backends.reference import (
    convolutions,
    indexing,
    losses,
    norm,
    philox,
    reductions,
    resampling,
)
from popxl_torch.backends.reference import functions as kernels
from popxl_torch.lowering.rules import Emitter, from_end, rule

CALLS: dict[str, tuple[Callable, str]] = {
    # elements
    "cast": (kernels.cast, "dtype"),
    "increment_mod": (kernels.increment_mod, "increment modulus"),
    # reductions
    "argmax": (reductions.argmax, "dim keepdims"),
    "argmin": (reductions.argmin, "dim keepdims"),
    "cumsum": (reductions.cumsum, "dim"),
    "softmax": (reductions.softmax, "dim"),
    "histogram": (reductions.histogram, "lead levels absolute"),
    # networks
    "conv_transpose": (convolutions.conv_transpose, "lead stride cuts groups"),
    "group_norm": (norm.group_norm, "lead num_groups eps"),
    "batch_norm_inference": (norm.batch_norm, "lead eps"),
    "roi_align": (resampling.roi_align, "lead scale samples size"),
    "nll_loss": (losses.nll_loss, "lead ignore reduction log_prob"),
    # shape
    "reshape": (kernels.reshape, "lead shape"),
    "transpose": (kernels.permute, "lead permutation"),
    "slice": (kernels.take_part, "bounds"),
    # indices
    "scatter": (indexing.scatter, "lead dim"),
    "dynamic_slice": (indexing.dynamic_slice, "lead dims sizes"),
    "onehot": (indexing.onehot, "lead num_classes axis"),
    # random numbers
    "random_uniform": (philox.uniform, "device out_shape low high dtype"),
    "random_normal": (philox.normal, "device out_shape mean std dtype"),
    "dropout": (philox.dropout, "lead shape ratio"),
    # what is outside
    "print_tensor": (kernels.print_tensor, "title enabled style float_format separator brackets"),
}
"""The function, and what it is given after the inputs: attributes of the op, or `_SETTINGS`."""

CALLS_FOR_SEVERAL: dict[str, tuple[Callable, str]] = {
    "topk": (reductions.topk, "k dim largest sorted"),
    "split": (torch.split, "sizes dim"),
    "nll_loss_with_softmax_grad": (losses.nll_loss_with_softmax_grad, "lead ignore reduction"),
    "split_random_seed": (philox.split, "outputs"),
}
"""Likewise, where the function gives a tuple of all outputs."""


_SETTINGS: dict[str, Callable[[Emitter, Op], Any]] = {
    "lead": lambda b, op: b.lead,
    "device": lambda b, op: b.device,
    "dim": lambda b, op: op.axis - op.inputs[0].rank,
    "dims": lambda b, op: from_end(op),
    "dtype": lambda b, op: op.outputs[0].dtype.as_torch(),
    "outputs": lambda b, op: len(op.outputs),
    "out_shape": lambda b, op: op.outputs[0].shape,
}


@rule(*CALLS)
def _call(b: Emitter, op: Op, args: list[Node]) -> Node:
    return _called(b, op, args, *CALLS[op.kind])


@rule(*CALLS_FOR_SEVERAL)
def _call_for_several(b: Emitter, op: Op, args: list[Node]) -> list[Node]:
    made = _called(b, op, args, *CALLS_FOR_SEVERAL[op.kind])
    return [b.call(operator.getitem, made, i) for i in range(len(op.outputs))]


def _called(b: Emitter, op: Op, args: list[Node], function: Callable, settings: str) -> Node:
    given = (_SETTINGS[s](b, op) if s in _SETTINGS else getattr(op, s) for s in settings.split())
    return b.call(function, *args, *given)
