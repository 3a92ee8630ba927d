"""The one table of what is known of each kind of op, whatever computes it.

Analysis, fusion, lowering, replay and cost ask it; none keeps a list of kinds of its own. A new op
is an entry here and one function a back end (`docs/adding-an-op.md`). What an op writes to, and
which collective it is, the op itself says (`op.modifies`, `op.group`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from popxl.graph import Op

ALL = sys.maxsize


@dataclass(frozen=True)
class OpFacts:
    """Of one kind of op.

    Attributes:
        moved: how many inputs, from the first on, are moved and not computed with: their dtype does
            not matter.
        shares: whether a result may lie in the memory of an input.
        aliases: whether it makes a view where its attribute `alias` says so: what is written to one
            is seen in the other.
        integers: where its integer inputs are computed with: "together" with the other inputs, or
            "apart", where they are.
        remote: whether it loads from or stores to a remote buffer.
        stream: whether it takes from or gives to the host.
        exchanges: whether replicas exchange something: a collective of `op.group`.
        steady: whether it does the same in every run, so that it can be recorded.
        cost: "read" counts a call that reads its inputs, "matmul" its operations too; "picked"
            reads as much of its first input as it gives; "written" reads nothing of weights;
            "view" and "loaded" cost nothing, since they only say where a tensor is; "called" costs
            what its graphs cost.
    """

    moved: int = 0
    shares: bool = False
    aliases: bool = False
    integers: Literal["together", "apart"] = "together"
    remote: Literal["load", "store"] | None = None
    stream: bool = False
    exchanges: bool = False
    steady: bool = True
    cost: Literal["read", "matmul", "picked", "written", "view", "loaded", "called"] = "read"


_COMPUTES = """
    abs negate sign ceil floor cos sin exp log log2 sqrt tanh relu swish gelu geluerf
    isfinite isinf isnan logical_not logical_and logical_or equal greater where
    add sub mul div fmod pow scaled_add increment_mod
    sum mean prod sumsquare logsumexp logsum median max min l1 l2
    argmax argmin topk cumsum softmax histogram
    layer_norm group_norm batch_norm_inference nll_loss nll_loss_with_softmax_grad
    conv conv_transpose max_pool average_pool interpolate roi_align
    scatter scatter_reduce onehot init copy accumulate accumulator_scale sparse_accumulate
    random_uniform random_normal dropout split_random_seed
"""
"""Ops that read all their inputs and make something new of them: nothing more is to be known."""

_MAY_BE_ITS_INPUT = OpFacts(shares=True)
_COLLECTIVE = OpFacts(shares=True, exchanges=True)
_SEEN_FROM_ELSEWHERE = OpFacts(moved=ALL, shares=True, cost="view")
_VIEW = OpFacts(moved=ALL, shares=True, aliases=True, cost="view")
_STREAM = OpFacts(stream=True, steady=False)

OP_FACTS: dict[str, OpFacts] = {
    **dict.fromkeys(_COMPUTES.split(), OpFacts()),
    **dict.fromkeys(("cast", "clip", "maximum"), _MAY_BE_ITS_INPUT),
    "matmul": OpFacts(cost="matmul"),
    # shape
    **dict.fromkeys(("reshape", "transpose", "slice"), _VIEW),
    **dict.fromkeys(("identity", "split"), _SEEN_FROM_ELSEWHERE),
    "concat": OpFacts(moved=ALL, aliases=True),
    # indices
    "gather": OpFacts(moved=1, integers="apart", cost="picked"),
    "dynamic_slice": OpFacts(moved=ALL, shares=True, integers="apart", cost="view"),
    "dynamic_update": OpFacts(integers="apart"),
    # what is outside
    "remote_load": OpFacts(remote="load", cost="loaded"),
    "remote_load_": OpFacts(remote="load"),
    "remote_store": OpFacts(remote="store", cost="written"),
    **dict.fromkeys(("host_load", "host_store"), _STREAM),
    "print_tensor": OpFacts(moved=ALL, shares=True, steady=False),
    **dict.fromkeys(("all_reduce", "all_gather", "reduce_scatter"), _COLLECTIVE),
    # graphs
    **dict.fromkeys(("call", "repeat"), OpFacts(cost="called")),
    "conditional": OpFacts(steady=False, cost="called"),
}
"""An entry for every kind of op that `popxl.ops` makes."""


def facts_of(op: Op) -> OpFacts:
    """The facts of an op's kind.

    Raises:
        NotImplementedError: where the table has no entry.
    """
    facts = OP_FACTS.get(op.kind)
    if facts is None:
        raise NotImplementedError(
            f"op {op.kind!r} has no entry in OP_FACTS: add one to "
            f"runtime/{__name__.replace('.', '/')}.py"
        )
    return facts


def is_view(op: Op) -> bool:
    """Whether the result of an op is a view of its inputs."""
    return facts_of(op).aliases and bool(op.attributes.get("alias"))
