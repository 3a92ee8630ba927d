"""Elementwise ops and reductions of rows, done one after another while a row is in the cache."""

from __future__ import annotations

import torch

from popxl_torch.backends.cpu.constants import LOADED, TYPES
from popxl_torch.backends.cpu.instructions import ELEMENTWISE, STEP, STRIDED
from popxl_torch.backends.cpu.library import Run
from popxl_torch.backends.specs import (
    CHAIN_STEPS,
    MOST_OPERANDS,
    MOST_STEPS,
    OUTER_AXES,
    ChainSpec,
    ChainStep,
)
from popxl_torch.memory.arrays import broadcast_shapes


class RowProgram:
    """A chain by the kernel."""

    def __init__(self, run: Run, spec: ChainSpec):
        steps = spec.steps
        assert len(steps) <= MOST_STEPS
        self.run, self.shape, self.dtype, self.lead = run, spec.shape, spec.dtype, spec.lead
        packed = [number for step in steps for number in _packed(step)]
        self._program = packed + [0] * (len(STEP.form) * (MOST_STEPS - len(steps)))
        self._steps = len(steps)
        self.__name__ = "elementwise"

    def __call__(self, *operands: torch.Tensor) -> torch.Tensor:
        mesh = broadcast_shapes(*(t.shape[: self.lead] for t in operands))
        result = torch.empty((*mesh, *self.shape), dtype=self.dtype)
        self.into(result, operands)
        return result

    def into(self, result: torch.Tensor, operands: tuple[torch.Tensor, ...]) -> None:
        """Write the result to memory that is there, `(*mesh, *shape)`."""
        if not result.numel():
            return
        *outer, row = result.shape
        fill = OUTER_AXES - len(outer)
        strided: list[int] = []
        for t in operands:
            strided += [t.data_ptr(), LOADED[t.dtype], *[0] * fill, *self._strides(t, result)]
        strided += [0] * (len(STRIDED.form) * (MOST_OPERANDS - len(operands)))
        self.run(
            ELEMENTWISE,
            result,
            sizes=[1] * fill + outer,
            row=row,
            steps=self._steps,
            out=[result.data_ptr(), TYPES[result.dtype], *[0] * fill, *result.stride()],
            operands=strided,
            program=self._program,
        )

    def _strides(self, t: torch.Tensor, result: torch.Tensor) -> list[int]:
        """Of an operand along the result's axes, 0 where it is repeated."""
        missing, steps = result.ndim - t.ndim, list(zip(t.shape, t.stride(), strict=True))
        aligned = [*steps[: self.lead], *[(1, 0)] * missing, *steps[self.lead :]]
        return [0 if size == 1 else stride for size, stride in aligned]


class Concat:
    """Tensors joined along an axis, each copied to its part of the result.

    Args:
        lead: the number of mesh axes.
        axis: counted from the end.
    """

    def __init__(self, run: Run, lead: int, axis: int, dtype: torch.dtype):
        self.lead, self.axis, self.dtype = lead, axis, dtype
        self._copy = RowProgram(run, ChainSpec((ChainStep("load", 0, (0,)),), (), dtype, lead))
        self.__name__ = "concat"

    def __call__(self, *parts: torch.Tensor) -> torch.Tensor:
        mesh = broadcast_shapes(*(t.shape[: self.lead] for t in parts))
        shape = [*mesh, *parts[0].shape[self.lead :]]
        sizes = [t.shape[self.axis] for t in parts]
        shape[self.axis] = sum(sizes)
        result = torch.empty(shape, dtype=self.dtype)
        for place, part in zip(result.split(sizes, self.axis), parts, strict=True):
            self._copy.into(place, (part,))
        return result


def _packed(step: ChainStep) -> list:
    a, b, c = (*step.of, 0, 0, 0)[:3]
    number = TYPES.get(step.dtype, TYPES[torch.float32])
    return [CHAIN_STEPS.index(step.kind), step.to, a, b, c, number, int(step.one), 0, step.value]
