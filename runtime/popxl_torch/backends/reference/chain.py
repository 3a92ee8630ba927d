"""Chains of elementwise steps in torch, one after another."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom

from popxl_torch.backends.reference.functions import align
from popxl_torch.backends.specs import ChainSpec, ChainStep
from popxl_torch.memory.arrays import broadcast_shapes

DO: dict[str, Callable[..., torch.Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": torch.maximum,
    "negate": torch.neg,
    "abs": torch.abs,
    "sqrt": torch.sqrt,
    "exp": torch.exp,
    "log": torch.log,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "swish": F.silu,
    "cos": torch.cos,
    "sin": torch.sin,
    "greater": torch.gt,
    "equal": torch.eq,
    "where": lambda condition, a, b: torch.where(condition != 0, a, b),
    "cast": lambda x: x,
    "sum": lambda x: x.sum(-1, keepdim=True),
    "mean": lambda x: x.mean(-1, keepdim=True),
    "max": lambda x: x.amax(-1, keepdim=True),
    "softmax": lambda x: torch.softmax(x, -1),
}


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
