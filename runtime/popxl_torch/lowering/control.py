"""Graphs that run several times, or one or the other."""

from __future__ import annotations

from typing import Any

import torch

from popxl_torch.lowering.placement import where
from popxl_torch.memory.cells import Cell

Outputs = tuple[torch.Tensor, ...]


class Repeat(torch.nn.Module):
    """Runs `body` `count` times, its outputs becoming the first inputs of the next round.

    Args:
        copied: for each output, whether it may lie in memory that the next round writes to.
    """

    def __init__(self, body: torch.nn.Module, count: int, copied: list[bool]):
        super().__init__()
        self.body, self.count, self.copied = body, count, copied

    def forward(self, *inputs: Any) -> Outputs:
        fed = list(inputs)
        outputs = tuple(_value(x) for x in fed[: len(self.copied)])
        for number in range(self.count):
            if number:
                self._feed(fed, outputs)
            outputs = self.body(*fed)
        return outputs

    def _feed(self, fed: list[Any], outputs: Outputs) -> None:
        # All copies first: an output may lie in the cell that another one is written to.
        copies = zip(outputs, self.copied, strict=True)
        for i, value in enumerate([x.clone() if copied else x for x, copied in copies]):
            if isinstance(fed[i], Cell):
                fed[i].write(value)
            else:
                fed[i] = value


class Conditional(torch.nn.Module):
    """Runs one of two graphs; the first `split` inputs after the condition go to the first one.

    Where replicas differ in the condition both run, and each replica takes what its own gives.

    Args:
        lead: the number of mesh axes.
        outside: what the graphs do besides, which both must not do: reach a stream or a remote
            buffer, or other processes; nothing where empty.
    """

    def __init__(
        self,
        then_branch: torch.nn.Module,
        else_branch: torch.nn.Module,
        split: int,
        lead: int,
        outside: str,
    ):
        super().__init__()
        self.then_branch, self.else_branch = then_branch, else_branch
        self.split, self.lead, self.outside = split, lead, outside

    def forward(self, condition: torch.Tensor, *inputs: Any) -> Outputs:
        chosen = condition.flatten().tolist()
        if all(chosen):
            return self.then_branch(*inputs[: self.split])
        if not any(chosen):
            return self.else_branch(*inputs[self.split :])
        if self.outside:
            raise RuntimeError(
                f"conditional: replicas differ in the condition, and a branch {self.outside}: all "
                "must take the same branch"
            )
        return self._each_its_own(condition, inputs)

    def _each_its_own(self, condition: torch.Tensor, inputs: tuple[Any, ...]) -> Outputs:
        copies = [Cell(x.tensor) if isinstance(x, Cell) else x for x in inputs]
        outputs = zip(
            self.then_branch(*copies[: self.split]),
            self.else_branch(*copies[self.split :]),
            strict=True,
        )
        results = tuple(self._choose(condition, a, b) for a, b in outputs)
        for i, (cell, copy) in enumerate(zip(inputs, copies, strict=True)):
            if isinstance(cell, Cell):
                taken = condition if i < self.split else ~condition
                cell.write(self._choose(taken, copy.tensor, cell.tensor))
        return results

    def _choose(self, condition: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        mesh = condition.shape[: self.lead]
        return where(condition.reshape(*mesh, *(1,) * (a.ndim - self.lead)), a, b)


def _value(x: Any) -> torch.Tensor:
    return x.tensor if isinstance(x, Cell) else x
