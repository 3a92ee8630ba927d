"""Chains of elementwise steps in torch, one after another."""

from __future__ import annotations

from collections.abc import Callable

import torch

from popxl_torch.backends.reference.functions import ELEMENTWISE, align
from popxl_torch.backends.specs import ChainSpec, ChainStep
from popxl_torch.memory.arrays import broadcast_shapes

DO: dict[str, Callable[..., torch.Tensor]] = {
    **ELEMENTWISE,
    "div": torch.div,
    "where": lambda condition, a, b: torch.where(condition != 0, a, b),
    "cast": lambda x: x,
    "sum": lambda x: x.sum(-1, keepdim=True),
    "mean": lambda x: x.mean(-1, keepdim=True),
    "max": lambda x: x.amax(-1, keepdim=True),
    "softmax": lambda x: torch.softmax(x, -1),
}
"""What steps do that are no loads and constants; some elementwise ops are no steps."""


class Chain:
    """Runs a chain: in float32, each step's result rounded to its dtype."""

    def __init__(self, spec: ChainSpec):
        self.spec = spec
        self.__name__ = "elementwise"

    def __call__(self, *operands: torch.Tensor) -> torch.Tensor:
        spec = self.spec
        registers: dict[int, torch.Tensor] = {}
        for step in spec.steps:
            registers[step.to] = self._done(step, registers, operands)
        result = registers[spec.steps[-1].to]
        mesh = broadcast_shapes(*(t.shape[: spec.lead] for t in operands))
        return result.expand(*mesh, *spec.shape).to(spec.dtype)

    def _done(
        self,
        step: ChainStep,
        registers: dict[int, torch.Tensor],
        operands: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        spec = self.spec
        if step.kind == "load":
            operand = operands[step.of[0]]
            missing = spec.lead + len(spec.shape) - operand.ndim
            return align(operand, spec.lead, missing).float()
        if step.kind == "constant":
            return torch.full((1,) * (spec.lead + len(spec.shape)), step.value)
        made = DO[step.kind](*(registers[i] for i in step.of))
        return made.to(step.dtype).float()
