"""The CUDA back end: Triton's kernels where there are any, and CUDA graphs. Never run on a GPU."""

from __future__ import annotations

import functools
from types import ModuleType

import torch

from popxl_torch.backends.back_end import one_after_another
from popxl_torch.backends.cuda.attention import attention_on_gpu
from popxl_torch.backends.cuda.product import linear_on_gpu
from popxl_torch.backends.specs import (
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
Tokens = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Cuda:
    """A `BackEnd` of a GPU.

    Args:
        kernels: those of `kernels.py`; None where PyTorch does what they would.
        capture: of CUDA graphs; None where there are to be none.
    """

    chains = False

    def __init__(self, kernels: ModuleType | None, capture: Capture | None):
        self.kernels, self.capture = kernels, capture
        self.products = kernels is not None

    def linear(
        self, spec: LinearSpec, x: torch.Tensor, weight: StoredWeight, bias: Maybe, residual: Maybe
    ) -> Maybe:
        if self.kernels is None:
            return None
        return linear_on_gpu(self.kernels, spec, x, weight, bias, residual)

    def attention(
        self,
        spec: AttentionSpec,
        tokens: Tokens,
        cells: tuple[Cell, Cell],
        slopes: torch.Tensor,
        positions: torch.Tensor,
        row: Maybe,
    ) -> Maybe:
        if self.kernels is None:
            return None
        if row is None:
            return self._tokens(spec.lead, slopes, tokens, cells, positions)
        chunk = spec.queries == "chunk of a row"
        kernel = self.kernels.chunk_attention if chunk else self.kernels.verify_attention
        done = attention_on_gpu(kernel, spec.lead, tokens, cells, slopes, positions, row)
        if done is not None or chunk or row.numel() > 1:
            return done
        attend = functools.partial(self._tokens, spec.lead, slopes)
        return one_after_another(attend, spec.lead, tokens, cells, positions, int(row))

    def _tokens(
        self,
        lead: int,
        slopes: torch.Tensor,
        tokens: Tokens,
        cells: tuple[Cell, Cell],
        positions: torch.Tensor,
    ) -> Maybe:
        """One token for every row."""
        assert self.kernels is not None
        kernel = self.kernels.token_attention
        return attention_on_gpu(kernel, lead, tokens, cells, slopes, positions)

    # PyTorch does the rest.

    def epilogue(self, spec: LinearSpec, y: torch.Tensor, bias: Maybe, residual: Maybe) -> None: ...

    def dequantise(self, weight: StoredWeight, dtype: torch.dtype) -> None: ...

    def batched(self, spec: LinearSpec, x: torch.Tensor, w: torch.Tensor) -> None: ...

    def norm(
        self, spec: NormSpec, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> None: ...

    def chain(self, spec: ChainSpec) -> None: ...

    def concat(self, lead: int, axis: int, dtype: torch.dtype, rank: int) -> None: ...

    def place(
        self, spec: PlaceSpec, target: torch.Tensor, index: torch.Tensor, update: torch.Tensor
    ) -> None: ...
