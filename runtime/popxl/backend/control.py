"""Graphs that run several times, or one or the other."""

from __future__ import annotations

from typing import Any

import torch

from popxl.backend.cells import Cell


class Repeat(torch.nn.Module):
    """Runs `body` `count` times, its outputs becoming its first inputs.

    Args:
        copied: for each output, whether it may share memory that the next round writes to.
    """

    def __init__(self, body: torch.nn.Module, count: int, copied: list[bool]):
        super().__init__()
        self.body, self.count, self.copied = body, count, copied

    def forward(self, *inputs: Any) -> tuple[torch.Tensor, ...]:
        fed = list(inputs)
        carried = len(self.copied)
        for _ in range(self.count):
            for i, output in enumerate(self.body(*fed)):
                value = output.clone() if self.copied[i] else output
                if isinstance(fed[i], Cell):
                    fed[i].write(value)
                else:
                    fed[i] = value
        return tuple(x.tensor if isinstance(x, Cell) else x for x in fed[:carried])


class Conditional(torch.nn.Module):
    """Runs one of two graphs; the first `split` inputs after the condition go to the first one."""

    def __init__(self, then_branch: torch.nn.Module, else_branch: torch.nn.Module, split: int):
        super().__init__()
        self.then_branch, self.else_branch, self.split = then_branch, else_branch, split

    def forward(self, condition: torch.Tensor, *inputs: Any) -> tuple[torch.Tensor, ...]:
        chosen = condition.flatten().tolist()
        if any(c != chosen[0] for c in chosen):
            raise RuntimeError(
                "conditional: replicas disagree on the condition, "
                f"{chosen}; all must take the same branch (reduce it over the replicas first)"
            )
        if chosen[0]:
            return self.then_branch(*inputs[: self.split])
        return self.else_branch(*inputs[self.split :])
