"""The reference: every spec in torch ops, on any device. Other back ends are tested against it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from popxl_torch.backends.reference import functions, indexing
from popxl_torch.backends.reference.attention import attention
from popxl_torch.backends.reference.chain import Chain
from popxl_torch.backends.reference.linear import dequantised, epilogue, linear
from popxl_torch.backends.reference.matmul import matmul
from popxl_torch.backends.reference.norm import norm
from popxl_torch.backends.specs import AttentionSpec, LinearSpec, PlaceSpec
from popxl_torch.replay.replay import Capture


class Reference:
    """A `BackEnd` that does everything, op by op: nothing is given to it as one."""

    products = chains = False
    capture: Capture | None = None
    linear = staticmethod(linear)
    epilogue = staticmethod(epilogue)
    norm = staticmethod(norm)
    attention = staticmethod(attention)
    dequantise = staticmethod(dequantised)
    chain = Chain

    def lacks(self, spec: LinearSpec | AttentionSpec) -> None:
        """Nothing."""

    def batched(self, spec: LinearSpec, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return matmul(x, w, spec.lead, spec.dtype)

    def concat(
        self, lead: int, axis: int, dtype: torch.dtype, rank: int
    ) -> Callable[..., torch.Tensor]:
        def concat(*parts: torch.Tensor) -> torch.Tensor:
            return functions.concat(list(parts), lead, axis)

        return concat

    def place(
        self, spec: PlaceSpec, target: torch.Tensor, index: torch.Tensor, update: torch.Tensor
    ) -> bool:
        indexing.put_at(target, index, update, spec.lead, spec.axes, spec.sizes)
        return True
