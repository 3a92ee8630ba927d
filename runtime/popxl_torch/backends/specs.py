"""What back ends are asked to compute, and how it lies: the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from popxl_shared.groups import PER_WORD


@dataclass(frozen=True)
class StoredWeight:
    """The weight of a product, `(*mesh, in, outputs)`.

    Attributes:
        tensor: floats or int8 `(*mesh, in, outputs)`, or words of four numbers, uint16
            `(*mesh, outputs, groups, group_size / 4)`.
        scale: of int8 `(*mesh, outputs)`, of words `(*mesh, outputs, groups, 1)`.
        offset: of words, like their scale.
    """

    tensor: torch.Tensor
    scale: torch.Tensor | None = None
    offset: torch.Tensor | None = None

    @property
    def grouped(self) -> bool:
        return self.offset is not None

    def sizes(self) -> tuple[int, int, int]:
        """Inputs, outputs, and elements of a group (0 where there are none)."""
        if self.grouped:
            outputs, groups, words = self.tensor.shape[-3:]
            return groups * words * PER_WORD, outputs, words * PER_WORD
        return self.tensor.shape[-2], self.tensor.shape[-1], 0

    def fits(self) -> bool:
        """Whether the kernels read a weight that lies like this."""
        if self.grouped:
            assert self.scale is not None and self.offset is not None
            *_, outputs, groups, words = self.tensor.shape
            size = words * PER_WORD
            rows = [self.tensor.stride()[-2:], *(t.stride()[-2:-1] for t in self.scales())]
            return (
                size >= 8
                and size & (size - 1) == 0
                and rows == [(words, 1), (1,), (1,)]
                and self.scale.stride() == self.offset.stride()
                and self.scale.dtype == self.offset.dtype
                and self.scale.shape == self.offset.shape
            )
        return 1 in self.strides()

    def strides(self) -> tuple[int, int]:
        """Of outputs and of inputs, in elements; a kernel reads along the one that is 1."""
        if self.grouped:
            return self.tensor.stride(-3), 1
        inputs, outputs = self.tensor.stride()[-2:]
        size, count, _ = self.sizes()
        if inputs == 1 or size == 1:
            return outputs, 1
        return (1 if count == 1 else outputs), inputs

    def scale_stride(self) -> int:
        """From an output's scale to the next one's, in elements; 0 where there are none."""
        if self.scale is None:
            return 0
        return self.scale.stride(-3 if self.grouped else -1)

    def scales(self) -> list[torch.Tensor]:
        """The scales and offsets that there are."""
        return [t for t in (self.scale, self.offset) if t is not None]


ACTIVATIONS = ("gelu", "geluerf", "swish", "relu")
"""What may follow a product."""


@dataclass(frozen=True)
class LinearSpec:
    """`activation(x @ weight + bias) * gate + residual`, with sums in float32.

    Attributes:
        lead: the number of mesh axes in front of every tensor.
        dtype: of the result.
        summed: a mesh axis that products are summed over, of size 1 in the result; or None.
        activation: one of `ACTIVATIONS`, or None.
    """

    lead: int
    dtype: torch.dtype
    summed: int | None = None
    activation: str | None = None


class Added(NamedTuple):
    """What follows a product, as far as it is tensors.

    Attributes:
        bias: `(*mesh, outputs)`.
        residual, gate: like the result, `(*mesh, ..., outputs)`.
    """

    bias: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    gate: torch.Tensor | None = None

    def tensors(self) -> list[torch.Tensor]:
        """Those that there are."""
        return [t for t in self if t is not None]


NOTHING = Added()


@dataclass(frozen=True)
class NormSpec:
    """Layer norm of the last dimension, in float32.

    Attributes:
        lead: the number of mesh axes in front of every tensor.
        epsilon: added to the variance.
        parts: the mesh axis along which the parts of a row lie, and their number; or None.
    """

    lead: int
    epsilon: float
    parts: tuple[int, int] | None = None


@dataclass(frozen=True)
class AttentionSpec:
    """`softmax(q k^T * scale + bias) v` over a KV cache, of the keys that a query sees.

    These are those of its sequence up to its own, or the last ones of them.

    Attributes:
        lead: the number of mesh axes in front of every tensor.
        queries: which tokens the queries are: a chunk of one sequence, or of several in blocks; one
            token of each, or of some; or the next tokens of one sequence. All but chunks are
            computed alike, to the bit.
        group: query heads that share a head of the caches.
        alibi: whether there is a bias by distance, with a slope a head (`popxl_shared.alibi`).
        scale: None for `1 / sqrt(head_dim)`.
        window: the most keys that a query sees; None for all.
    """

    lead: int
    queries: Literal[
        "chunk of a row",
        "chunks of rows",
        "token of each row",
        "token of some rows",
        "tokens of a row",
    ]
    group: int = 1
    alibi: bool = True
    scale: float | None = None
    window: int | None = None

    def factor(self, head_dim: int) -> float:
        """What products of queries and keys are multiplied with."""
        return head_dim**-0.5 if self.scale is None else self.scale


@dataclass(frozen=True)
class PlaceSpec:
    """A part of a tensor replaced.

    Attributes:
        lead: the number of mesh axes in front of every tensor.
        axes: along which the part has another size, counted from the end.
        sizes: of the part, along them.
    """

    lead: int
    axes: tuple[int, ...]
    sizes: tuple[int, ...]


OUTER_AXES, MOST_OPERANDS, MOST_STEPS, MOST_REGISTERS = 7, 8, 24, 16
"""What a chain has at most: axes but for rows, tensors that it reads, steps, registers."""

CHAIN_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
CHAIN_TYPES = (*CHAIN_FLOATS, torch.int32, torch.bool)
"""The types of results, and of the tensors that it reads."""


@dataclass(frozen=True)
class ChainStep:
    """One step: `kind` of the registers `of` into the register `to`.

    Attributes:
        kind: one of `CHAIN_STEPS`.
        dtype: what the result is rounded to.
        one: whether there is one element a row.
        value: of a constant.
    """

    kind: str
    to: int
    of: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    one: bool = False
    value: float = 0.0


CHAIN_STEPS = (
    *("load", "constant", "add", "sub", "mul", "div", "maximum", "negate", "abs", "sqrt", "exp"),
    *("log", "tanh", "relu", "swish", "cos", "sin", "greater", "equal", "where", "cast"),
    *("sum", "mean", "max", "softmax"),
)
"""What a step may do: a load of the operand `of`, a constant, elements, reductions of rows."""


@dataclass(frozen=True)
class ChainSpec:
    """Elementwise steps and reductions of rows; the last step makes the result.

    Attributes:
        shape: of the result, without the mesh.
        dtype: of the result.
        lead: the number of mesh axes in front of every operand.
    """

    steps: tuple[ChainStep, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    lead: int
