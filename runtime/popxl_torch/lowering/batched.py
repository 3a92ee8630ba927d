"""Products with a matrix for each batch and head: natively, or in torch.

A batch axis is to a kernel what an axis of the mesh is, so it reads each matrix as it lies.
"""

from __future__ import annotations

import torch

from popxl_torch.backends.cpu.library import Library
from popxl_torch.backends.cpu.linear import linear
from popxl_torch.backends.reference.matmul import matmul
from popxl_torch.backends.specs import StoredWeight

MOST_AXES = 3
"""Of mesh and batch together, those that kernels know; axes of size 1 do not count."""


class RunBatched:
    """`(*mesh, *batch, n, k) @ (*mesh, *batch, k, m)`, with as many batch axes in each.

    Args:
        lead: the number of mesh axes.
        dtype: of the result.
    """

    def __init__(self, native: Library, lead: int, dtype: torch.dtype):
        self.native, self.lead, self.dtype = native, lead, dtype
        self.__name__ = "matmul"

    def __call__(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        done = self._natively(x, w)
        return matmul(x, w, self.lead, self.dtype) if done is None else done

    def _natively(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor | None:
        pairs = list(zip(x.shape[:-2], w.shape[:-2], strict=True))
        kept = [axis for axis, sizes in enumerate(pairs) if sizes != (1, 1)]
        if len(kept) > MOST_AXES:
            return None
        dropped = tuple(axis for axis in range(len(pairs)) if axis not in kept)
        made = linear(
            self.native,
            len(kept),
            *(x.squeeze(dropped), StoredWeight(w.squeeze(dropped)), self.dtype),
        )
        return None if made is None else made.reshape(*map(max, pairs), *made.shape[-2:])
