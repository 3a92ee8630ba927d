"""The CPU's back end: kernels in C++, of which graphs that repeat are recorded."""

from __future__ import annotations

from collections.abc import Callable

import torch

from popxl_torch.backends.cpu.attention import chunk_attention, token_attention
from popxl_torch.backends.cpu.constants import FLOATS, MESH_AXES, OUTER_AXES
from popxl_torch.backends.cpu.elementwise import Concat, RowProgram
from popxl_torch.backends.cpu.library import Library
from popxl_torch.backends.cpu.linear import decompressed, finish, linear
from popxl_torch.backends.cpu.norm import norm
from popxl_torch.backends.cpu.place import put
from popxl_torch.backends.specs import (
    AttentionSpec,
    ChainSpec,
    LinearSpec,
    NormSpec,
    PlaceSpec,
    StoredWeight,
)
from popxl_torch.memory.cells import Cell
from popxl_torch.replay.recorder import CallLists
from popxl_torch.replay.replay import Capture

Maybe = torch.Tensor | None


class Cpu:
    """A `BackEnd` of the compiled kernels.

    Args:
        native: the library.
    """

    products = chains = True

    def __init__(self, native: Library):
        self.native = native
        self.capture: Capture | None = CallLists(native)

    def lacks(self, spec: LinearSpec | AttentionSpec) -> str | None:
        if isinstance(spec, LinearSpec) or spec.queries != "chunk of a row" or spec.window is None:
            return None
        return "a chunk's queries see all keys before them, not a window"

    def linear(
        self, spec: LinearSpec, x: torch.Tensor, weight: StoredWeight, *added: Maybe, **more: Maybe
    ) -> Maybe:
        return linear(self.native, spec, x, weight, *added, **more)

    def epilogue(self, spec: LinearSpec, y: torch.Tensor, *added: Maybe, **more: Maybe) -> Maybe:
        return finish(self.native, spec, y, *added, **more)

    def dequantise(self, weight: StoredWeight, dtype: torch.dtype) -> Maybe:
        return decompressed(self.native, weight, dtype)

    def batched(self, spec: LinearSpec, x: torch.Tensor, w: torch.Tensor) -> Maybe:
        """A batch axis is to the kernel what an axis of the mesh is: it reads each matrix as it
        lies. Axes of size 1 do not count."""
        pairs = list(zip(x.shape[:-2], w.shape[:-2], strict=True))
        kept = [axis for axis, sizes in enumerate(pairs) if sizes != (1, 1)]
        if len(kept) > MESH_AXES:
            return None
        dropped = tuple(axis for axis in range(len(pairs)) if axis not in kept)
        weight = StoredWeight(w.squeeze(dropped))
        made = linear(self.native, LinearSpec(len(kept), spec.dtype), x.squeeze(dropped), weight)
        return None if made is None else made.reshape(*map(max, pairs), *made.shape[-2:])

    def norm(
        self, spec: NormSpec, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> Maybe:
        return norm(self.native, spec.lead, x, weight, bias, spec.epsilon, spec.parts)

    def attention(
        self,
        spec: AttentionSpec,
        tokens: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        cells: tuple[Cell, Cell],
        slopes: Maybe,
        positions: torch.Tensor,
        row: Maybe,
    ) -> Maybe:
        lead = spec.lead
        if self.lacks(spec):
            return None
        caches = [c.writable(new.shape[:lead]) for c, new in zip(cells, tokens[1:], strict=True)]
        given = (self.native, spec, tokens, caches, slopes, positions)
        if spec.queries in ("chunk of a row", "chunks of rows"):
            assert row is not None
            return chunk_attention(*given, row)
        return token_attention(*given, row)

    def chain(self, spec: ChainSpec) -> Callable[..., torch.Tensor]:
        return RowProgram(self.native, spec)

    def concat(
        self, lead: int, axis: int, dtype: torch.dtype, rank: int
    ) -> Callable[..., torch.Tensor] | None:
        if dtype not in FLOATS or rank + lead > OUTER_AXES:
            return None
        return Concat(self.native, lead, axis, dtype)

    def place(
        self, spec: PlaceSpec, target: torch.Tensor, index: torch.Tensor, update: torch.Tensor
    ) -> bool | None:
        done = put(self.native, spec.lead, target, index, update, spec.axes, spec.sizes)
        return done or None
