"""What a back end does: the interface that the reference, the CPU's kernels and CUDA's share.

A session has one back end, chosen once when it is made (`chosen.py`). Each method does the work on
the tensors that it is given, or returns None, which means that the reference does it (for a graph
that was declared: the graph itself). A back end knows no other one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from popxl_torch.backends.specs import (
    NOTHING,
    Added,
    AttentionSpec,
    ChainSpec,
    LinearSpec,
    NormSpec,
    PlaceSpec,
    StoredWeight,
)
from popxl_torch.memory.cells import Cell
from popxl_torch.replay.replay import Capture

Maybe = torch.Tensor | None


class BackEnd(Protocol):
    """A back end.

    Attributes:
        products: whether products are given to it with what follows them, as one.
        chains: whether chains of elementwise ops are given to it, as one.
        capture: how graphs that repeat are captured; None where they are not.
    """

    products: bool
    chains: bool
    capture: Capture | None

    def lacks(self, spec: LinearSpec | AttentionSpec) -> str | None:
        """Why the kernels do not do what a spec says, whatever the tensors; None where they do."""

    def linear(
        self, spec: LinearSpec, x: torch.Tensor, weight: StoredWeight, added: Added = NOTHING
    ) -> Maybe:
        """Of x `(*mesh, ..., in)`."""

    def epilogue(self, spec: LinearSpec, y: torch.Tensor, added: Added) -> Maybe:
        """What follows a product whose sum is `y`."""

    def dequantise(self, weight: StoredWeight, dtype: torch.dtype) -> Maybe:
        """A weight of groups as floats, `(*mesh, in, outputs)`."""

    def batched(self, spec: LinearSpec, x: torch.Tensor, w: torch.Tensor) -> Maybe:
        """`(*mesh, *batch, n, k) @ (*mesh, *batch, k, m)`, with as many batch axes in each."""

    def norm(
        self, spec: NormSpec, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> Maybe:
        """Of x `(*mesh, ..., size)`, weight and bias `(*mesh, size)`."""

    def attention(
        self,
        spec: AttentionSpec,
        tokens: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        cells: tuple[Cell, Cell],
        slopes: Maybe,
        positions: torch.Tensor,
        row: Maybe,
    ) -> Maybe:
        """Put keys and values in their caches and attend over what is filled.

        Args:
            tokens: queries `(*mesh, tokens, heads, head_dim)`; keys and values likewise, of
                `heads / group`.
            cells: of keys and values, `(*mesh, batch, heads / group, sequence_length, head_dim)`.
            slopes: of ALiBi, float32 `(*mesh, heads)`; None where there is no bias.
            positions: int32 `(*mesh, tokens)`; of a chunk `(*mesh)`, that of its first token; of
                chunks `(*mesh, blocks)`, those of the first tokens of blocks of as many each.
            row: int32, the row of the caches `(*mesh)` where the tokens are of one, else, like
                positions, that of each token or block. None where each row has its token.

        Returns:
            Like the queries; None where nothing was written either.
        """

    def chain(self, spec: ChainSpec) -> Callable[..., torch.Tensor] | None:
        """What does the chain, from its operands to its result."""

    def concat(
        self, lead: int, axis: int, dtype: torch.dtype, rank: int
    ) -> Callable[..., torch.Tensor] | None:
        """What joins tensors of `rank` axes besides the mesh's, along an axis from the end."""

    def place(
        self, spec: PlaceSpec, target: torch.Tensor, index: torch.Tensor, update: torch.Tensor
    ) -> bool | None:
        """Replace the part of `target` that begins at `index`, in its memory; True where done."""


def first_of(name: str, *ways: Callable[..., Maybe]) -> Callable[..., torch.Tensor]:
    """Does it in the first way that returns something; the last one always does."""

    def run(*args: torch.Tensor) -> torch.Tensor:
        for way in ways:
            done = way(*args)
            if done is not None:
                return done
        raise AssertionError(name)

    run.__name__ = name
    return run


def one_after_another(
    attend: Callable[..., Maybe],
    lead: int,
    tokens: Sequence[torch.Tensor],
    cells: Sequence[Cell],
    positions: torch.Tensor,
    row: int,
) -> Maybe:
    """The tokens of one row of the caches, each as `attend` does one token of each row.

    Args:
        attend: from tokens, cells and positions to the context; it always does it or never.
        row: of the caches.
    """
    whole = [cell.writable(new.shape[:lead]) for cell, new in zip(cells, tokens[1:], strict=True)]
    caches = tuple(Cell(t.narrow(lead, row, 1), shared=False) for t in whole)
    done = []
    for i in range(tokens[0].shape[lead]):
        one = tuple(t.narrow(lead, i, 1) for t in tokens)
        made = attend(one, caches, positions.narrow(-1, i, 1))
        if made is None:
            return None
        done.append(made)
    return torch.cat(done, dim=lead)


def by_block(
    attend: Callable[..., Maybe],
    lead: int,
    tokens: Sequence[torch.Tensor],
    cells: Sequence[Cell],
    slopes: torch.Tensor,
    positions: torch.Tensor,
    rows: torch.Tensor,
) -> Maybe:
    """Chunks of rows, block after block, each as `attend` does a chunk of a row.

    Args:
        attend: from tokens, cells, slopes, position and row to the context; it always does it or
            never.
        positions, rows: `(*mesh, blocks)`.
    """
    count = positions.shape[-1]
    size, done = tokens[0].shape[lead] // count, []
    for i in range(count):
        block = tuple(t.narrow(lead, i * size, size) for t in tokens)
        made = attend(block, cells, slopes, positions[..., i], rows[..., i])
        if made is None:
            return None
        done.append(made)
    return torch.cat(done, dim=lead)
