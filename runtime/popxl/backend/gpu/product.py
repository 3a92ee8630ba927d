"""Products on a GPU, with what follows them: by the Triton kernels where they do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import torch

from popxl.backend.gpu.attention import flat
from popxl.backend.native.linear import Weight
from popxl.backend.products import Product, RunProduct


class RunOnGpu(RunProduct):
    """Runs a product: by the GPU's kernels where each replica group holds one value, else op by op.

    Args:
        lead: the number of mesh axes.
        reduced: does the sum that is `product.reduced`.
    """

    def __init__(
        self,
        product: Product,
        lead: int,
        kernels: ModuleType,
        reduced: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        super().__init__(product, lead, None, reduced)
        self.kernels = kernels

    def _linear(
        self,
        x: torch.Tensor,
        weight: Weight,
        dtype: torch.dtype,
        *,
        summed: int | None = None,
        bias: torch.Tensor | None = None,
        activation: str | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        if summed is not None:
            return None
        given = x, weight.tensor, weight.scale, weight.offset, bias, residual
        alone = flat(self.lead, *(t for t in given if t is not None))
        if alone is None:
            return None
        tensors = iter(alone)
        x1, tensor, scale, offset, bias, residual = (
            None if t is None else next(tensors) for t in given
        )
        assert x1 is not None and tensor is not None
        weight = replace(weight, tensor=tensor, scale=scale, offset=offset)
        outputs = weight.sizes()[1]
        done = self.kernels.linear(
            x1.reshape(-1, x1.shape[-1]),
            weight,
            dtype,
            bias,
            activation,
            None if residual is None else residual.reshape(-1, outputs),
        )
        return None if done is None else done.reshape(*x.shape[:-1], outputs)
