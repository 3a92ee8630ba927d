"""Chains of elementwise ops, with reductions of rows among them, that one kernel does.

Found by the structure of a graph alone: ops whose results have the rows of the last one's, each
used nowhere else. An RMS norm written out is such a chain, and so are a gate, a mask, a rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from popxl.graph import Graph, Op
from popxl.tensor import Constant, Tensor

from popxl_torch.backends.back_end import BackEnd
from popxl_torch.backends.reference.back_end import Reference
from popxl_torch.backends.specs import (
    CHAIN_FLOATS,
    CHAIN_TYPES,
    MOST_OPERANDS,
    MOST_REGISTERS,
    MOST_STEPS,
    OUTER_AXES,
    ChainSpec,
    ChainStep,
)
from popxl_torch.fusion.groups import Fusion

OPERANDS = {
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "greater", "equal"), 2),
    **dict.fromkeys(("negate", "abs", "sqrt", "exp", "relu", "swish", "cast"), 1),
    **dict.fromkeys(("log", "tanh", "cos", "sin"), 1),
    "where": 3,
}
"""The elementwise kinds that the kernel does, and how many operands they have."""

REDUCTIONS = {"sum", "mean", "max", "sumsquare"}

SLOW, MOST_OF_SLOW = {"log", "tanh", "cos", "sin"}, 1 << 13
"""Kinds that torch is quicker at where there are more elements."""

LONGEST_ROW = 1 << 15
SHORT_ROW, MOST_SHORT_ROWS = 8, 1 << 12
"""Rows longer than the cache, and many that are short, are left to torch."""


@dataclass(frozen=True)
class Chain:
    """Ops in the order written; the last one makes the result.

    Attributes:
        inputs: the tensors that it reads.
    """

    ops: tuple[Op, ...]
    inputs: tuple[Tensor, ...] = field(default=())

    @property
    def output(self) -> Tensor:
        return self.ops[-1].outputs[0]

    def spec(self, lead: int) -> ChainSpec:
        """What back ends are asked for."""
        out = self.output
        steps = _steps(self)
        assert steps is not None
        return ChainSpec(tuple(steps), out.shape, out.dtype.as_torch(), lead)

    def lowered(self, lead: int, back_end: BackEnd, *_: object) -> Callable[..., torch.Tensor]:
        """What computes it, from its inputs, which have `lead` mesh axes in front."""
        spec = self.spec(lead)
        return back_end.chain(spec) or Reference().chain(spec)


def chains(graph: Graph, fusion: Fusion, lead: int) -> list[Chain]:
    """The chains of a graph, each as long as it may be; they are taken.

    Args:
        lead: the number of mesh axes.
    """
    maker = {t: op for op in graph._ops for t in op.outputs}
    order = {op: i for i, op in enumerate(graph._ops)}
    found = []
    for op in reversed(graph._ops):
        if _is_known(op) and _ends(op, lead) and fusion.allows([op]):
            chain = _extended(Chain((op,), _read([op])), fusion, maker, order)
            if _fits(chain):
                fusion.take(chain.ops)
                found.append(chain)
    return found


def in_place(op: Op, lead: int) -> Chain | None:
    """The one op that replaces its first input's elements, as a chain that makes the new ones."""
    pure = Op(op.kind, op.inputs, op.inputs[:1], op.attributes)
    chain = Chain((pure,), _read([pure], made=()))
    fits = _is_known(pure) and op.kind in OPERANDS and _ends(pure, lead)
    return chain if fits and _fits(chain) else None


def _extended(chain: Chain, fusion: Fusion, maker: dict[Tensor, Op], order: dict[Op, int]) -> Chain:
    """The chain with the ops in front of it that only it needs."""
    refused: set[Op] = set()
    while True:
        makers = {maker[t] for t in chain.inputs if t in maker} - refused
        if not makers:
            return chain
        op = max(makers, key=order.__getitem__)
        ops = tuple(sorted((op, *chain.ops), key=order.__getitem__))
        longer = Chain(ops, _read(ops))
        if _belongs(op, chain.output) and fusion.allows(ops) and _fits(longer):
            chain, refused = longer, set()
        else:
            refused.add(op)


def _is_known(op: Op) -> bool:
    if op.modifies or len(op.outputs) != 1 or not all(_is_loaded(t) for t in op.inputs):
        return False
    if op.kind in SLOW and op.outputs[0].nelms > MOST_OF_SLOW:
        return False
    if op.kind in OPERANDS:
        return len(op.inputs) == OPERANDS[op.kind]
    if not op.inputs or not op.inputs[0].rank or not op.inputs[0].dtype.is_floating_point:
        return False
    x = op.inputs[0]
    if op.kind in REDUCTIONS:
        return tuple(op.axes) == (x.rank - 1,) and op.keepdims
    return op.kind == "softmax" and op.axis % x.rank == x.rank - 1


def _is_loaded(t: Tensor) -> bool:
    return t.dtype.as_torch() in CHAIN_TYPES


def _ends(op: Op, lead: int) -> bool:
    """Whether a chain may end with this op."""
    out = op.outputs[0]
    if not out.rank or not out.nelms or out.shape[-1] > LONGEST_ROW:
        return False
    if out.shape[-1] < SHORT_ROW and out.nelms // out.shape[-1] > MOST_SHORT_ROWS:
        return False
    return (
        0 < out.rank <= OUTER_AXES + 1 - lead
        and out.dtype.as_torch() in CHAIN_FLOATS
        and op.kind not in REDUCTIONS
        and all(_is_float(t) or op.kind in ("cast", "where") for t in op.inputs)
    )


def _is_float(t: Tensor) -> bool:
    return t.dtype.is_floating_point


def _belongs(op: Op, out: Tensor) -> bool:
    """Whether an op's result has the rows of a chain's, or one element for each."""
    if not _is_known(op):
        return False
    made = op.outputs[0]
    rows = made.rank == out.rank and made.shape[:-1] == out.shape[:-1]
    as_long = {t.shape[-1] for t in op.inputs if t.rank} | {made.shape[-1]} if made.rank else set()
    floats = _is_float(made) or (made.dtype.name == "bool" and op.kind in ("greater", "equal"))
    numbers = all(_is_float(t) or op.kind == "cast" for t in op.inputs) or op.kind == "where"
    whole = op.kind in OPERANDS or op.inputs[0].shape[-1] == out.shape[-1]
    return rows and whole and floats and numbers and as_long <= {1, out.shape[-1]}


def _read(
    ops: tuple[Op, ...] | list[Op], made: Collection[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """The tensors that ops read and do not make, each once; numbers are part of the program."""
    made = {t for op in ops for t in op.outputs} if made is None else made
    given = (t for op in ops for t in op.inputs if t not in made and not _is_number(t))
    return tuple(dict.fromkeys(given))


def _is_number(t: Tensor) -> bool:
    return isinstance(t, Constant) and t.nelms == 1 and t.rank == 0


def _fits(chain: Chain) -> bool:
    """Whether the kernel has room for it."""
    numbers = {t for op in chain.ops for t in op.inputs if _is_number(t)}
    squares = sum(op.kind == "sumsquare" for op in chain.ops)
    count = len(chain.ops) + squares + len(chain.inputs) + len(numbers)
    return (
        0 < len(chain.inputs) <= MOST_OPERANDS
        and count <= MOST_STEPS
        and all(t.rank <= chain.output.rank for t in chain.inputs)
        and _steps(chain) is not None
    )


class _NoRoomError(Exception):
    pass


def _steps(chain: Chain) -> list[ChainStep] | None:
    """The steps of a chain; None where there are not enough registers."""
    try:
        return _Registers(chain).steps
    except _NoRoomError:
        return None


class _Registers:
    """The assignment of registers: each is free again after its tensor's last use."""

    def __init__(self, chain: Chain):
        self.row = chain.output.shape[-1]
        self.operand = {t: i for i, t in enumerate(chain.inputs)}
        self.last = {t: op for op in chain.ops for t in op.inputs}
        self.held: dict[Tensor, int] = {}
        self.free = list(range(MOST_REGISTERS))
        self.steps: list[ChainStep] = []
        for op in chain.ops:
            self._add(op)

    def _add(self, op: Op) -> None:
        of, out = tuple(self._loaded(t) for t in op.inputs), op.outputs[0]
        to = self._register()  # another one than those that are read
        kind = op.kind
        if kind == "sumsquare":
            self.steps.append(ChainStep("mul", to, of * 2))
            kind, of = "sum", (to,)
        self.steps.append(ChainStep(kind, to, of, out.dtype.as_torch(), self._is_one(out)))
        for t in set(op.inputs):
            if self.last[t] is op:
                self.free.append(self.held.pop(t))
        self.held[out] = to

    def _loaded(self, t: Tensor) -> int:
        if t in self.held:
            return self.held[t]
        to = self.held[t] = self._register()
        if t in self.operand:
            self.steps.append(ChainStep("load", to, (self.operand[t],), one=self._is_one(t)))
        else:
            assert isinstance(t, Constant)
            value = float(t._data.reshape(()).astype("float64"))
            self.steps.append(ChainStep("constant", to, value=value, one=True))
        return to

    def _register(self) -> int:
        if not self.free:
            raise _NoRoomError
        return self.free.pop(0)

    def _is_one(self, t: Tensor) -> bool:
        """Whether a tensor has one element a row."""
        return (not t.rank or t.shape[-1] == 1) and self.row > 1
