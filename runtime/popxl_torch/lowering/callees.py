"""Lowered graphs as those that call them see them: what they do to memory that is not their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from popxl_torch.analysis.aliasing import Key


@dataclass(frozen=True)
class Lowered:
    """A graph as a callable, and what it does to memory that is not its own.

    Attributes:
        module: takes an argument an input, a `Cell` where that is by reference; returns a tuple.
        shares: for each output, the memory it may lie in.
        writes: the memory that is written to.
    """

    module: torch.nn.Module
    shares: tuple[frozenset[Key], ...]
    writes: frozenset[Key]


@dataclass(frozen=True)
class Callee:
    """A lowered graph at an op that calls it: its input j is the op's input `first + j`."""

    lowered: Lowered
    first: int

    def written(self) -> set[int]:
        """The op's inputs that are written to."""
        return {self.first + j for kind, j in self.lowered.writes if kind == "in"}

    def shared(self, output: int) -> set[int]:
        """The op's inputs whose memory an output may lie in."""
        return {self.first + j for kind, j in self.lowered.shares[output] if kind == "in"}


def repeated(body: Lowered, by_ref: frozenset[int]) -> tuple[Lowered, list[bool]]:
    """A loop of `body` as one callable, and which outputs need a copy before they are fed."""
    carried = range(len(body.shares))
    writes = body.writes | {("in", i) for i in by_ref if i in carried}
    copied = [bool(shared & writes) for shared in body.shares]
    shares = [shared | {("in", i)} for i, shared in enumerate(body.shares)]
    for _ in carried:
        shares = [
            shared.union(*(shares[i] for kind, i in shared if kind == "in" and i in carried))
            for shared in shares
        ]
    return Lowered(body.module, tuple(shares), writes), copied
