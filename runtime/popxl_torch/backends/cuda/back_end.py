"""The CUDA back end: Triton's kernels where there are any, and CUDA graphs. Never run on a GPU."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch

from popxl_torch.backends.back_end import by_block, one_after_another
from popxl_torch.backends.cuda.attention import attention_on_gpu
from popxl_torch.backends.cuda.product import linear_on_gpu
from popxl_torch.backends.specs import NOTHING, Added, AttentionSpec, LinearSpec, StoredWeight
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

    def lacks(self, spec: LinearSpec | AttentionSpec) -> str | None:
        if self.kernels is None:
            return "there are no kernels for this GPU"
        if isinstance(spec, LinearSpec):
            known = spec.activation in (None, "gelu", "geluerf")
            return None if known else f"of activations there is GELU, not {spec.activation}"
        if replace(spec, alibi=True) != AttentionSpec(spec.lead, spec.queries):
            return "attention has a head of keys a head of queries, its usual scale, and no window"
        return None

    def linear(
        self, spec: LinearSpec, x: torch.Tensor, weight: StoredWeight, added: Added = NOTHING
    ) -> Maybe:
        if self.lacks(spec) or added.gate is not None:
            return None
        assert self.kernels is not None
        return linear_on_gpu(self.kernels, spec, x, weight, added.bias, added.residual)

    def attention(
        self,
        spec: AttentionSpec,
        tokens: Tokens,
        cells: tuple[Cell, Cell],
        slopes: Maybe,
        positions: torch.Tensor,
        row: Maybe,
    ) -> Maybe:
        if self.lacks(spec):
            return None
        assert self.kernels is not None
        if slopes is None:  # the kernels always have a bias
            heads = tokens[0].shape[-2]
            slopes = torch.zeros((*[1] * spec.lead, heads), device=tokens[0].device)
        if row is None or spec.queries == "token of some rows":
            return self._tokens(spec.lead, slopes, tokens, cells, positions, row)
        chunk = spec.queries in ("chunk of a row", "chunks of rows")
        kernel = self.kernels.chunk_attention if chunk else self.kernels.verify_attention
        given = functools.partial(attention_on_gpu, kernel, spec.lead)
        done = given(tokens, cells, slopes, positions, row)
        if done is None and spec.queries == "chunks of rows":  # they are no axis beside replicas
            return by_block(given, spec.lead, tokens, cells, slopes, positions, row)
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
        rows: Maybe = None,
    ) -> Maybe:
        """One token for every row, or for each of `rows`."""
        assert self.kernels is not None
        places = [positions] if rows is None else [positions, rows]
        kernel = self.kernels.token_attention
        return attention_on_gpu(kernel, lead, tokens, cells, slopes, *places)

    def _pytorch_does(self, *given: Any, **more: Any) -> None:
        """Nothing."""

    epilogue = dequantise = batched = norm = chain = concat = place = _pytorch_does
